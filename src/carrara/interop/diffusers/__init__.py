"""Models in the layout of diffusers, read and written."""
