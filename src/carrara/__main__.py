"""`python -m carrara`: the command line."""

from carrara.cli.app import main

main()
