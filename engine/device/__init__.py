"""The device: finding it, waiting for it, and sending data to it."""
