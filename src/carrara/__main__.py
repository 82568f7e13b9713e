"""`python -m carrara`: the command line."""

from carrara.cli import main

main()
