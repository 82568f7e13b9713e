"""Duplicates: what a data set holds twice: the same pixels in other files, copies scaled, re-encoded, cropped or
mirrored, and pictures that a network sees alike. Finding is apart from deciding: nothing here changes a data set.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from carrara.cleaning.near_pairs import Pairs, alike, alike_by_cells, within
from carrara.dataset.columns import caption_language
from carrara.dataset.fingerprints import glances, glances_at
from carrara.errors import BadPicture, UserError
from carrara.images.decode import lossy_format, whole
from carrara.images.fingerprint import RADIUS, flat, look, one_picture, unpack
from carrara.search.vector_columns import PICTURES, vector_columns
from carrara.tensors import Index

if TYPE_CHECKING:
    from carrara.cleaning.near_pairs import Hashes, Vectors
    from carrara.dataset.dataset import Dataset
    from carrara.images.fingerprint import Colours, Glances


COSINE = 0.9
EXACT = (
    50_000  # pictures of which each is compared with each by its features; above, with those of a few cells
)
_CHUNK = 4096
_FEW = 64  # pictures decoded together

By = Literal["hash", "features"]


class Likeness(NamedTuple):
    """Rows with the same number in ``node`` [n] look exactly alike at a glance; the nodes ``first`` and ``second`` are
    near by ``score``, those ``mirrored`` as mirror images."""

    node: Index
    first: Index
    second: Index
    score: npt.NDArray[np.float32]
    mirrored: npt.NDArray[np.bool_]
    by: By


class Copy(NamedTuple):
    """A row that a group could do without, how near to the one kept, and that in words."""

    row: int
    score: float
    how: str


@dataclass(frozen=True)
class Group:
    """The row worth keeping, and those that are much like it."""

    kept: int
    copies: tuple[Copy, ...]

    @property
    def rows(self) -> list[int]:
        """All its rows, the one worth keeping first."""
        return [self.kept, *(copy.row for copy in self.copies)]


def by_hash(dataset: Dataset, column: str, radius: int = RADIUS, *, mirrored: bool = False) -> Likeness:
    """What is alike by the glances in ``column``: within ``radius`` bits, and close in colour."""
    return by_glances(
        glances(dataset, column),
        lambda rows: glances_at(dataset, column, rows).colours,
        radius,
        mirrored=mirrored,
    )


def by_glances(
    parts: Iterable[Glances],
    colours: Callable[[Index], Colours],
    radius: int = RADIUS,
    *,
    mirrored: bool = False,
) -> Likeness:
    """`by_hash` of any glances, whose ``colours`` are asked for again by their numbers."""
    every = [(part.hashes, part.mirrored, _digests(part.colours)) for part in parts]
    hashes, flipped, digests = (np.concatenate(found) for found in zip(*every, strict=True))
    _, first_row, node = np.unique(
        np.stack([hashes, digests], 1), axis=0, return_index=True, return_inverse=True
    )
    hashes, flipped = hashes[first_row], flipped[first_row]
    found = [_seen(colours, first_row, _once(within(hashes, hashes, radius)), mirrored=False)]
    if mirrored:
        found.append(_seen(colours, first_row, _once(within(hashes, flipped, radius)), mirrored=True))
    first, second, score, turned = _joined(found)
    return Likeness(node.reshape(-1), first, second, score, turned, "hash")


def by_features(dataset: Dataset, column: str, cosine: float = COSINE) -> Likeness:
    """What is alike by the unit vectors in ``column``: those whose cosine is at least ``cosine``.

    Of more than ``EXACT`` rows nearly all such pairs, see `alike_by_cells`.
    """

    def read(rows: Index) -> Vectors:
        flat = dataset.take_arrow(rows, [column])[column].combine_chunks().flatten().to_numpy()
        vectors = flat.reshape(len(rows), -1).astype(np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)

    pairs_of = alike if len(dataset) <= EXACT else alike_by_cells
    found = list(pairs_of(len(dataset), read, cosine))
    first, second, score = _pairs(found)
    # A network sees white where there is nothing to see: such pictures are alike by all their numbers only.
    rows, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    hashes, empty = _hashes_of_empty(dataset, rows)
    left, right = place[: len(first)], place[len(first) :]
    real = np.where(empty[left] | empty[right], hashes[left] == hashes[right], True)
    first, second, score = first[real], second[real], score[real]
    return Likeness(np.arange(len(dataset)), first, second, score, np.zeros(len(first), bool), "features")


def _hashes_of_empty(dataset: Dataset, rows: Index) -> tuple[Hashes, npt.NDArray[np.bool_]]:
    """The hashes of rows, as far as there is nothing to see in them, and which these are."""
    hashes, empty = np.zeros(len(rows), np.uint64), np.zeros(len(rows), bool)
    span = dataset.span("image")
    for start in range(0, len(rows), _FEW):
        part = slice(start, start + _FEW)
        data = dataset.take(rows[part], ["image"])["image"]
        found = unpack(np.stack([look(one, span) for one in data]))
        hashes[part], empty[part] = found.hashes, flat(found.colours)
    return hashes, empty


def features_column(dataset: Dataset) -> str:
    """The newest column of picture vectors; UserError where there is none, or some rows lack theirs."""
    names = [one.column for one in vector_columns(dataset) if one.of == PICTURES and not one.joint]
    for name in reversed(names):
        if not len(dataset.without(name)):
            return name
    state = "some pictures have no feature vector yet" if names else "its pictures have no feature vectors"
    raise UserError(
        f"{dataset.path}: {state}; make them with `carrara data encode {dataset.path} --features`"
    )


def groups(dataset: Dataset, likeness: Likeness) -> list[Group]:
    """The groups, largest first: each row is kept, or so near to a kept one that it can go.

    A copy is near to the kept row itself, never to another copy only. Kept is the row with a caption, then the
    largest picture, then what no lossy format has changed, then the largest file, then the earlier.
    """
    node, pairs = likeness.node, np.concatenate([likeness.first, likeness.second])
    alike_ones = np.bincount(node) + np.bincount(pairs, minlength=int(node.max(initial=-1)) + 1) > 1
    rank = _rank(dataset, np.flatnonzero(alike_ones[node]))
    order = np.lexsort((rank, node))  # the rows of a node together, the best one first
    starts = np.flatnonzero(np.r_[True, np.diff(node[order]) > 0])
    best = order[starts]
    counts = np.diff(np.r_[starts, len(order)])
    near: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for edge, (a, b) in enumerate(zip(likeness.first.tolist(), likeness.second.tolist(), strict=True)):
        near[a].append((b, edge))
        near[b].append((a, edge))
    gone: set[int] = set()
    kept: list[tuple[int, list[tuple[int, int]]]] = []
    touched = set(near) | set(np.flatnonzero(counts > 1).tolist())
    for one in sorted(touched, key=lambda index: int(rank[best[index]])):
        if one in gone:
            continue
        mine = [(other, edge) for other, edge in near[one] if other not in gone]
        # A node that was kept before would have taken this one; those left are free.
        gone |= {one, *(other for other, _ in mine)}
        if mine or counts[one] > 1:
            kept.append((one, mine))
    found = []
    for one, mine in kept:
        copies = [Copy(int(row), 0.0, "") for row in order[starts[one] + 1 : starts[one] + counts[one]]]
        for other, edge in mine:
            rows = order[starts[other] : starts[other] + counts[other]]
            how = "mirrored" if likeness.mirrored[edge] else ""
            copies += [Copy(int(row), float(likeness.score[edge]), how) for row in rows]
        found.append(_told(dataset, likeness.by, int(best[one]), copies))
    return sorted(found, key=lambda group: (-len(group.copies), group.kept))


def components(likeness: Likeness) -> Index:
    """For every row the lowest row that it hangs together with, over any number of likenesses."""
    count = len(likeness.node)
    lowest = np.full(int(likeness.node.max(initial=-1)) + 1, count, np.int64)
    np.minimum.at(lowest, likeness.node, np.arange(count))
    return hanging_together(lowest, likeness.first, likeness.second)[likeness.node]


def hanging_together(names: Index, first: Index, second: Index) -> Index:
    """``names`` [n], each lowered to the lowest of all that pairs of indices tie to it."""
    names = names.copy()
    while True:
        lower = np.minimum(names[first], names[second])
        before = names.copy()
        np.minimum.at(names, first, lower)
        np.minimum.at(names, second, lower)
        if np.array_equal(before, names):
            return names


def _digests(colours: Colours) -> npt.NDArray[np.uint64]:
    """A number of 64 bits for every glance's colours."""
    odd = np.random.default_rng(0).integers(0, 1 << 63, colours[0].size, np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    digests: npt.NDArray[np.uint64] = colours.reshape(len(colours), -1).astype(np.uint64) @ odd
    return digests


def _once(found: Iterator[Pairs]) -> Iterator[Pairs]:
    for pairs in found:
        keep = pairs.first < pairs.second
        yield Pairs(pairs.first[keep], pairs.second[keep], pairs.score[keep])


def _seen(
    read: Callable[[Index], Colours], rows: Index, found: Iterator[Pairs], *, mirrored: bool
) -> tuple[Pairs, bool]:
    """Those of the pairs of nodes, whose glances stand at ``rows``, that are close in colour too."""
    kept = []
    first, second, score = _pairs(list(found))
    for start in range(0, len(first), _CHUNK):
        part = slice(start, start + _CHUNK)
        asked, place = np.unique(np.concatenate([first[part], second[part]]), return_inverse=True)
        colours = read(rows[asked])[place]
        middle = len(place) // 2
        close = one_picture(colours[:middle], colours[middle:, :, ::-1] if mirrored else colours[middle:])
        empty = flat(colours)  # in these only equal numbers are alike
        close &= (score[part] == 0) | ~(empty[:middle] | empty[middle:])
        kept.append(Pairs(first[part][close], second[part][close], score[part][close]))
    return _pairs(kept), mirrored


def _pairs(found: list[Pairs]) -> Pairs:
    every = [Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)), *found]
    return Pairs(
        np.concatenate([pairs.first for pairs in every]),
        np.concatenate([pairs.second for pairs in every]),
        np.concatenate([pairs.score for pairs in every]),
    )


def _joined(
    found: list[tuple[Pairs, bool]],
) -> tuple[Index, Index, npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """All pairs, one of two that are alike both ways as it is nearer."""
    pairs = _pairs([part for part, _ in found])
    turned = np.concatenate([np.full(len(part.first), mirrored) for part, mirrored in found])
    order = np.lexsort((turned, pairs.score, pairs.second, pairs.first))
    first, second = pairs.first[order], pairs.second[order]
    new = np.r_[True, (np.diff(first) != 0) | (np.diff(second) != 0)][: len(order)]
    return first[new], second[new], pairs.score[order][new], turned[order][new]


def _rank(dataset: Dataset, rows: Index) -> Index:
    """The place of every row in the order of what is worth keeping; the files of ``rows`` alone are looked at."""
    names = sorted(name for name in dataset.columns if caption_language(name) is not None)
    captioned = np.zeros(len(dataset), bool)
    for name in names:
        captioned |= dataset.arrow([name])[name].is_valid().to_numpy()
    sizes = dataset.arrow(["width", "height"])
    area = sizes["width"].to_numpy().astype(np.int64) * sizes["height"].to_numpy()
    lossy, size = np.zeros(len(dataset), bool), np.zeros(len(dataset), np.int64)
    for start in range(0, len(rows), _FEW):
        part = rows[start : start + _FEW]
        data = dataset.take(part, ["image"])["image"]
        lossy[part], size[part] = [bool(lossy_format(one)) for one in data], [len(one) for one in data]
    rank = np.empty(len(dataset), np.int64)
    rank[np.lexsort((-size, lossy, -area, ~captioned))] = np.arange(len(dataset))
    return rank


def _told(dataset: Dataset, by: By, kept: int, copies: list[Copy]) -> Group:
    """The group with words for each copy; pixels are compared where the sizes are equal."""
    rows = [kept, *(copy.row for copy in copies)]
    sizes = dataset.take(rows, ["width", "height"])
    same_size = [
        copy.row
        for copy, size in zip(copies, list(zip(*sizes.values(), strict=True))[1:], strict=True)
        if size == (sizes["width"][0], sizes["height"][0]) and copy.how != "mirrored"
    ]
    pixels = _pixels(dataset, [kept, *same_size]) if same_size else {}
    said = []
    for row, score, how in sorted(
        copies, key=lambda copy: (copy.score if by == "hash" else -copy.score, copy.row)
    ):
        if row in pixels and pixels[row] == pixels[kept]:
            words = "the same pixels"
        else:
            bits = (
                "alike at a glance"
                if score == 0
                else f"{score:.0f} {'bit differs' if score == 1 else 'bits differ'}"
            )
            words = ", ".join(filter(None, [how, bits if by == "hash" else f"cosine {score:.3f}"]))
        said.append(Copy(row, score, words))
    return Group(kept, tuple(said))


def _pixels(dataset: Dataset, rows: list[int]) -> dict[int, bytes]:
    """A hash of what each row's picture decodes to."""
    found = {}
    for row in rows:
        data = dataset.take([row], ["image"])["image"][0]
        try:
            found[row] = hashlib.sha256(
                whole(data, 4, bits=16, span=dataset.span("image")).numpy().tobytes()
            ).digest()
        except (
            BadPicture
        ):  # of many channels: compared at a glance alone, and by nothing more like itself only
            found[row] = hashlib.sha256(data).digest()
    return found


def document(dataset: Dataset, found: list[Group]) -> list[dict[str, Any]]:
    """The groups with names that a machine can use."""
    rows = [row for group in found for row in group.rows]
    named = dict(zip(rows, _records(dataset, rows), strict=True)) if rows else {}
    return [
        {
            "kept": named[group.kept],
            "copies": [{**named[copy.row], "score": copy.score, "how": copy.how} for copy in group.copies],
        }
        for group in found
    ]


def _records(dataset: Dataset, rows: list[int]) -> list[dict[str, Any]]:
    names = ["id", "source", "width", "height", "split", "group"]
    taken = dataset.take(rows, names)
    return [
        {"row": row, **dict(zip(names, values, strict=True))}
        for row, values in zip(rows, zip(*(taken[name] for name in names), strict=True), strict=True)
    ]
