"""Embedders: what turns pictures and texts into vectors that are near where these are alike; a module each."""
