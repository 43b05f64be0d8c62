"""The built-in model: a toy in the published Nemotron-Labs-Diffusion layout, described in README.md beside it."""
