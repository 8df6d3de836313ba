"""What both ends of a gRPC call share: credentials, errors, access rules, and the server itself."""
