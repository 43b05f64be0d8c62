"""Triton kernels for NVIDIA GPUs, their callers, and captured passes."""
