"""Training of Llama-style models, cut over data, tensor and pipeline ranks."""
