"""Measures of pictures and latents: numbers, none of our models."""
