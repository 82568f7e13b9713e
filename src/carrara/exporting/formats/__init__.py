"""One module per format; this folder is the registry.

Each has ``write(pictures, columns, folder, number) -> Iterator[int]``: it writes `exporting.Picture`s, until there are
enough for one shard or no more, into the empty folder of the shard of this number, and yields how many it has
written; ``columns`` are the names that some picture says something under. The shards then lie in one folder together,
so no name may be in two of them. Where more than that is needed, ``finish(folder, columns, digest)`` does it there when
all shards are, and may do it again. What is written comes in again by an importer, in the same order.
"""
