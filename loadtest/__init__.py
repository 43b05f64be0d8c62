"""Load generator and quality meter for any OpenAI-compatible server. It speaks HTTP only and imports no server code."""
