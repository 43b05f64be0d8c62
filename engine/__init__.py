"""The inference engine: scheduling, decoding policies, passes and the KV cache. It knows nothing of HTTP or of text."""
