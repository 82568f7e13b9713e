"""One module per format; this folder is the registry.

Each has ``write(pictures, columns, folder) -> Iterator[int]``: it writes `exporting.Picture`s into an empty folder and
yields how many it has written; ``columns`` are the names that some picture says something under. What it writes comes
in again by an importer, in the same order.
"""
