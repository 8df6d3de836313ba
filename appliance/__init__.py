"""A secure LLM appliance for a company's own GPU servers: raw text in, a served model out."""

import os

# gRPC reads it once, when it is imported. Without it each handshake of a stranger that fails is a
# line on standard error, past every limit; with "ERROR" each that asks for another server's name.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
