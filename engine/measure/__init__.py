"""Measurements: the speed of the device, the cost of passes, and the least that a pass must cost."""
