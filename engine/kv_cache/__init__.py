"""The KV cache: bookkeeping of its pages, and its tensors."""
