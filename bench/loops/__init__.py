"""Loops that a user would write with `transformers` for these models: one request at a time, and padded batches."""
