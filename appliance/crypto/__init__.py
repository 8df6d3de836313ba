"""Keys, sealed storage, signatures and certificates; alone in importing `cryptography`."""
