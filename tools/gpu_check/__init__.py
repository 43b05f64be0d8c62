"""`make gpu-check`: checks and measures the engine on a GPU machine in minutes, and writes a report.

`python -m tools.gpu_check` needs no checkpoint and no network. Without a GPU it runs the same parts at toy size, which
is how they are tested.
"""
