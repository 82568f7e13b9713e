"""By vectors: the nearest of a column by cosine; exact while that is fast, above through an index (bench/search.py).

The index (IVF_RQ: RaBitQ codes of Gao & Long 2024 in cells around centroids) only chooses candidates; they are ranked
by their own vectors. Rows that it does not hold yet are compared one by one, so nothing that is there is missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from carrara.search.indexes import Build, build, covers, make_index
from carrara.search.table_scores import Rows, Scores, ask

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.search.vector_columns import VectorColumn

EXACT = 2_500_000  # numbers that are compared one by one in a few milliseconds


@dataclass(frozen=True)
class Effort:
    """How an index is built and asked: cells in all, cells that are looked into, candidates for each hit."""

    cells: int
    probes: int
    refine: int

    @staticmethod
    def of(rows: int, width: int) -> Effort:
        """About 800 rows a cell and 16 to 32 of them looked into; short codes need more refining."""
        cells = 2 ** max(0, round(np.log2(max(1, rows) / 800)))
        return Effort(cells, min(cells, max(16, min(32, cells // 8))), max(10, 2560 // width))


def index_vectors(dataset: Dataset, column: VectorColumn, build: Build = build) -> bool:
    """Makes or freshens the column's index where it has enough rows for one; whether there was something to do."""
    rows = len(dataset)
    if rows * column.width <= EXACT:
        return False
    cells = Effort.of(rows, column.width).cells
    settings = {
        "num_partitions": cells,
        "num_bits": 1,
        "sample_rate": 64,
    }  # more samples take long in half floats
    return make_index(dataset, column.column, "IVF_RQ", build, metric="cosine", **settings)


def nearest(
    dataset: Dataset,
    column: VectorColumn,
    vector: npt.NDArray[np.float32],
    *,
    limit: int,
    where: str | None = None,
    effort: Effort | None = None,
) -> tuple[Rows, Scores]:
    """Row numbers and cosines of the ``limit`` rows nearest to ``vector [d]``, best first.

    Rows without a vector are not among them. UserError where the condition does not hold for this table.
    """
    asked: dict[str, Any] = {"column": column.column, "q": vector, "k": limit, "metric": "cosine"}
    if (indexed := covers(dataset, column.column)) is None:
        asked["use_index"] = False
    else:
        effort = effort or Effort.of(indexed, column.width)
        asked |= {"nprobes": effort.probes, "refine_factor": effort.refine}
    rows, distances = ask(dataset, "_distance", where=where, limit=limit, nearest=asked)
    there = np.isfinite(distances)
    return rows[there], 1 - distances[there]
