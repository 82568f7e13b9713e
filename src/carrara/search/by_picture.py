"""By picture: "is it in the training set?" – the same bytes, then nearly the same to the eye, then what looks alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from carrara.dataset.columns import content_id
from carrara.dataset.fingerprints import glance_column, glances
from carrara.images.fingerprint import BITS, RADIUS, distance, look, one_picture, unpack
from carrara.search.query import Ranked
from carrara.search.table_scores import Rows

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset


def same_bytes(dataset: Dataset, data: bytes) -> Rows:
    """The row whose picture has exactly these bytes, if any."""
    return dataset.indices(None, f"id = '{content_id(data)}'")


def nearly_same(dataset: Dataset, data: bytes) -> tuple[Rows, Rows] | None:
    """Rows that show the same picture, also mirrored, and in how many bits their hashes differ; nearest first.

    None where some pictures have no stored hash yet. Raises BadPicture.
    """
    mine, start = unpack(look(data, dataset.span("image"))[None]), 0
    column = glance_column(dataset)
    if column is None:
        return None
    found: dict[int, int] = {}
    for theirs in glances(dataset, column):
        for hashes, colours in (
            (theirs.hashes, theirs.colours),
            (theirs.mirrored, theirs.colours[:, :, ::-1]),
        ):
            bits = distance(hashes, mine.hashes)
            near = np.flatnonzero(bits <= RADIUS)
            same = (
                near[one_picture(np.repeat(mine.colours, len(near), 0), colours[near])] if len(near) else near
            )
            for place in same.tolist():
                found[start + place] = min(int(bits[place]), found.get(start + place, BITS))
        start += len(theirs.hashes)
    rows = np.array(sorted(found, key=lambda row: (found[row], row)), np.int64)
    return rows, np.array([found[row] for row in rows.tolist()], np.int64)


def by_bytes_and_hash(dataset: Dataset, data: bytes) -> tuple[Ranked, str, list[str]]:
    """What is the same, best first; the verdict in words; and remarks. Raises BadPicture."""
    near = nearly_same(dataset, data)
    exact = same_bytes(dataset, data)
    remarks = []
    if near is None:
        remarks.append(
            f"perceptual hashes are not stored for all pictures: `carrara data encode {dataset.path} --features`"
        )
    rows, scores, words = exact.tolist(), [1.0] * len(exact), ["the same bytes"] * len(exact)
    for row, bits in zip(*(found.tolist() for found in near or ()), strict=True):
        if row not in rows:
            rows.append(row)
            scores.append(1 - bits / BITS)
            words.append(f"nearly the same: {bits} of {BITS} bits of the hash differ")
    verdict = (
        "no picture of the data set has the same bytes"
        if near is None
        else "this picture is not in the data set"
    )
    if rows:
        split, source = (dataset.take(rows[:1], [name])[name][0] for name in ("split", "source"))
        kind = (
            "exactly this picture is"
            if len(exact)
            else f"nearly this picture ({words[0].partition(': ')[2]}) is"
        )
        verdict = f"{kind} in the data set, in the split {split}: row {rows[0]}, {source}"
    return Ranked("picture", np.array(rows, np.int64), np.array(scores), words, len(rows)), verdict, remarks
