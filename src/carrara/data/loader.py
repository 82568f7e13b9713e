"""Hands training its columns: the exact order, looked up by a thread, so that training never waits."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carrara.data.order import Batch, batches
from carrara.data.table import DERIVED_SHAPE, Dataset
from carrara.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from carrara.data.pictures import Crop

IN_MEMORY = 512 * 2**20
_STORED = {8: torch.uint8, 16: torch.int16}  # torch cannot put uint16 at an index; int16 has the same bytes

T = TypeVar("T")
Column = Tensor | list[Any]


@dataclass(frozen=True)
class Loaded:
    """A batch with its columns: tensors for pictures, derived columns and numbers; lists for words."""

    rows: npt.NDArray[np.int64]
    seen: int
    seeds: npt.NDArray[np.uint64]
    columns: Mapping[str, Column]


def load(
    dataset: Dataset,
    columns: Sequence[str],
    *,
    batch: int,
    seed: int,
    start: int = 0,
    split: str | None = "train",
    size: int | None = None,
    channels: int = 3,
    bits: int = 8,
    ahead: int = 4,
) -> Generator[Loaded, None, None]:
    """Batches without end, in the order that (seed, start) fixes, at most ``ahead`` of them in advance.

    ``image`` comes as ``[b channels size size]``, uint8 or with 16 ``bits`` uint16 (needs ``size``), a derived
    column as float16 or float32 ``[b, *shape]``, whole numbers as int64 ``[b]``, words as a list with None
    where there are none.
    Closing the iterator stops the thread. UserError where the split is empty or a column does not exist.
    """
    rows = dataset.indices(split)
    if len(rows) == 0:
        raise UserError(
            f"{dataset.path} has no pictures in the split {split!r}; it has {len(dataset)} in all"
        )
    if "image" in columns and size is None:
        raise ValueError("the column 'image' needs a size")
    dataset.take(rows[:1], columns)  # names a missing column here rather than in the thread
    fetch = Fetch(dataset, columns, size=size, channels=channels, bits=bits, keep=rows)
    return in_background(map(fetch, batches(rows, batch=batch, seed=seed, start=start)), ahead=ahead)


class Fetch:
    """Turns a Batch into its columns; decoded pictures stay in memory where all of ``keep`` fit into 512 MB.

    With ``size`` None the column ``image`` comes as the bytes themselves.
    """

    def __init__(
        self,
        dataset: Dataset,
        columns: Sequence[str],
        *,
        size: int | None,
        channels: int,
        bits: int = 8,
        crop: Crop = "centre",
        keep: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.dataset, self.columns, self.size = dataset, columns, size
        self.channels, self.bits, self.crop = channels, bits, crop
        self._shapes = {name: shape(dataset, name) for name in columns}
        self._place: npt.NDArray[np.int64] | None = None
        one = channels * (size or 0) ** 2 * bits // 8
        if "image" in columns and size and keep is not None and len(keep) * one <= IN_MEMORY:
            self._place = np.full(len(dataset), -1, np.int64)
            self._place[keep] = np.arange(len(keep))
            self._kept = torch.empty(len(keep), channels, size, size, dtype=_STORED[bits])
            self._have = np.zeros(len(keep), bool)

    def __call__(self, batch: Batch) -> Loaded:
        names = [name for name in self.columns if name != "image" or not self.size]
        found: dict[str, Column] = {}
        if names:
            table = self.dataset.take_arrow(batch.rows, names)
            found = {name: to_column(table[name], self._shapes[name]) for name in names}
        if "image" in self.columns and self.size:
            found["image"] = self._pictures(batch.rows, self.size)
        return Loaded(batch.rows, batch.seen, batch.seeds, found)

    def _pictures(self, rows: npt.NDArray[np.int64], size: int) -> Tensor:
        if self._place is None:
            return self._decoded(rows, size)
        places = self._place[rows]
        missing = np.unique(rows[~self._have[places]])
        if len(missing):
            self._kept[self._place[missing]] = self._decoded(missing, size).view(_STORED[self.bits])
            self._have[self._place[missing]] = True
        found = self._kept[torch.from_numpy(places)]
        return found if self.bits == 8 else found.view(torch.uint16)

    def _decoded(self, rows: npt.NDArray[np.int64], size: int) -> Tensor:
        return self.dataset.pictures(rows, size, self.channels, bits=self.bits, crop=self.crop)


def shape(dataset: Dataset, column: str) -> tuple[int, ...] | None:
    """The shape of one value of a derived column; None for a column of words or numbers."""
    import json

    if column not in dataset.columns:
        return None
    metadata = dataset.table.schema.field(column).metadata or {}
    text = metadata.get(DERIVED_SHAPE)
    return tuple(json.loads(text)) if text is not None else None


def to_column(values: pa.ChunkedArray, shape: tuple[int, ...] | None) -> Column:
    """Arrow values as ``[b, *shape]`` of their own type, ``int64 [b]`` for whole numbers, or a list."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(values.type):
        if values.null_count:
            raise UserError("a derived column is not filled for all of these rows; derive it again")
        flat = values.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return torch.from_numpy(flat.reshape(len(values), *(shape or (-1,))).copy())
    if pa.types.is_integer(values.type) and not values.null_count:
        return torch.from_numpy(values.to_numpy().astype(np.int64))
    words: list[Any] = values.to_pylist()
    return words


def in_background(items: Iterator[T], *, ahead: int) -> Generator[T, None, None]:
    """The same items, prepared by a thread, at most ``ahead`` waiting; its exception is raised at its place.

    The thread ends when the items do, when the iterator is closed, or with the program.
    """
    ready: queue.Queue[Callable[[], T] | None] = queue.Queue(maxsize=max(1, ahead))
    stop = threading.Event()

    def put(answer: Callable[[], T] | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(answer, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(lambda item=item: item)  # type: ignore[misc]
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(_raiser(error))

    thread = threading.Thread(target=work, name="carrara-loader", daemon=True)
    thread.start()
    try:
        while (answer := ready.get()) is not None:
            yield answer()
    finally:
        stop.set()
        thread.join()


def _raiser(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer
