"""Decoders that refine canvases of random tokens with the layers that encode the text before them."""
