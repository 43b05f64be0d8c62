"""Attention over paged KV: the interface, the arrays of a pass, and the reference on torch."""
