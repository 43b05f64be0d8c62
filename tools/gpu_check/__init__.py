"""`make gpu-check`: checks and measures the engine on a GPU machine in minutes, and writes a report.

`python -m tools.gpu_check` needs no checkpoint, no network and no package but torch, triton, transformers and what they
bring. Without a GPU it runs the same parts at toy size, which is how they are tested.
"""

from tools.gpu_check.bare import stand_in

MISSING = stand_in()
"""Packages of the project that are not installed here; before the engine is imported, which needs them."""
