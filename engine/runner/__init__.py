"""Running a pass: packing it on the host, running it on the device, and the kernels it runs with."""
