"""One module per kind of source; this folder is the registry.

Each has ``matches(source) -> bool``, ``survey(source, options) -> Survey`` (opens no picture) and
``rows(source, options) -> Iterator[Row | Rejected]`` (in an order that depends on the source alone).
"""
