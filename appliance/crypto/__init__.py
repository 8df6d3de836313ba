"""Keys, sealed storage, signatures and certificates: the only package that imports `cryptography`."""
