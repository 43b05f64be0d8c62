"""Mixture models on transformers' own modules: names of published tensors, what keeps them in one dtype."""
