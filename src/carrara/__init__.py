"""Carrara: train, search, measure and serve your own latent diffusion model."""

__version__ = "0.1.0"
