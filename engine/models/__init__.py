"""Models: reading a checkpoint, the weights, and the forward of the decoder."""
