"""Mixture models on transformers' own modules: names of published tensors, routers that keep to their dtype."""
