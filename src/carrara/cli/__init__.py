"""The command line."""

from carrara.cli.app import main

__all__ = ["main"]
