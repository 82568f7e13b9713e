"""Indexes built on Ray: lance-ray has workers build segments, each of some fragments, and publishes them as one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from carrara.data.cluster.session import cluster

if TYPE_CHECKING:
    import lance


def build_on_ray(
    workers: int | None,
    table: lance.LanceDataset,
    column: str,
    kind: str,
    name: str,
    settings: dict[str, Any],
) -> None:
    """`search.indexing.build` by so many workers, or one for each processor."""
    with cluster(workers) as team:
        import lance_ray

        logging.getLogger("lance_ray").setLevel(logging.WARNING)
        if kind == "INVERTED":
            lance_ray.create_scalar_index(
                table, column=column, index_type=kind, name=name, num_workers=team.workers, **settings
            )
        else:
            lance_ray.create_index(table, column, kind, name, num_workers=team.workers, **settings)
