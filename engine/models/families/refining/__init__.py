"""Families that refine canvases of random tokens."""
