"""One vLLM engine behind a gRPC port: the process that a node starts for each replica."""
