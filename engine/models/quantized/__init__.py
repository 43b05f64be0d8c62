"""Published quantized checkpoints: what config.json says of them, and a module's stored tensors as a matrix."""
