"""A query becomes hits: every way that it can be searched by is asked, and their rankings become one.

Several ways become one ranking: reciprocal rank fusion (Cormack et al. 2009), which needs no scale of scores.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from carrara.dataset.description import sources_of
from carrara.dataset.source_places import places_of
from carrara.errors import BadPicture, UserError
from carrara.images.decode import pixels
from carrara.search.by_picture import by_bytes_and_hash
from carrara.search.by_vector import nearest
from carrara.search.by_words import by_spelling, by_words, index_words, indexed
from carrara.search.query import WAYS, Found, Hit, Ranked, Reason
from carrara.search.vector_columns import lacking, newest, vector_columns
from carrara.text import nfc

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.search.query import EmbedderOf, Query, Way
    from carrara.search.vector_columns import VectorColumn


_SHOWN = ("id", "source", "label", "category", "split", "licence", "width", "height", "mode", "url", "flags")
_Vector = npt.NDArray[np.float32]  # [d]
_AT_ONCE = 8  # columns that are asked
_DEPTH = 200  # candidates of each way that are ranked together
MISSING = {
    "meaning": "the captions' meaning is not stored: `carrara data encode {path} --meaning`",
    "picture": "the pictures' features are not stored: `carrara data encode {path} --features`",
    "joint": (
        "there is no space of texts and pictures: `carrara train contrastive {path} --out RUN`, "
        "then `carrara data encode {path} --embedder RUN`"
    ),
    "words": "the data set has neither captions nor labels",
}


class Unavailable(UserError):
    """A way that this table or this machine cannot go; with several ways it is a remark."""


def search(dataset: Dataset, query: Query, embedder_of: EmbedderOf) -> Found:
    """What is found, with why and by which ways.

    UserError where the condition, the picture or the row is at fault, or where the one way asked for is not there.
    """
    started = time.perf_counter()
    asking = _Asking(dataset, query, embedder_of)
    rankings = asking.rankings()
    if rankings is None:
        rows = dataset.indices(None, query.where)
        fused = [Fused(int(row), 0.0, []) for row in rows[query.offset : query.offset + query.limit + 1]]
    else:
        fused = [one for one in in_depths(rankings, _DEPTH, asking.depth) if _wanted(query, one)]
        fused = fused[query.offset : query.offset + query.limit + 1]
    hits = hits_of(dataset, fused[: query.limit])
    return Found(
        hits,
        [ranking.way for ranking in rankings or ()],
        dataset.version,
        len(dataset),
        len(fused) > query.limit,
        round(time.perf_counter() - started, 4),
        asking.verdict,
        asking.remarks,
    )


def _wanted(query: Query, found: Fused) -> bool:
    """Whether it is alike enough, or certain, where the query wants only such."""
    if not query.matching and query.at_least is None:
        return True
    least = math.inf if query.at_least is None else query.at_least
    return any(r.certain or (r.way != "words" and r.score >= least) for r in found.reasons)


class _Asking:
    """One query on its way through the ways."""

    def __init__(self, dataset: Dataset, query: Query, embedder_of: EmbedderOf) -> None:
        self.dataset, self.query, self.embedder_of = dataset, query, embedder_of
        self.words = nfc(query.words.strip())
        self.like = None if query.like is None else _row_of(dataset, query.like)
        self.columns = vector_columns(dataset)
        self.depth = _DEPTH
        while self.depth < 2 * (query.offset + query.limit):
            self.depth *= 2
        self.verdict, self.remarks = "", list[str]()

    def rankings(self) -> list[Ranked] | None:
        """One for each way that is open; None where there is nothing to look for but a condition."""
        if not self.words and self.query.picture is None and self.like is None:
            return None
        asked = [self.query.by] if self.query.by in WAYS else self._possible()
        found: list[Ranked] = []
        for way in asked:
            try:
                found += getattr(self, f"_by_{way}")()
            except Unavailable as error:
                if len(asked) == 1:
                    raise
                self.remarks.append(f"not searched by {way}: {error}")
        if not found:
            raise UserError("; ".join(self.remarks))
        if self.words and not any(len(ranking.rows) for ranking in found):
            # Beside another way similar spellings would only mix other things in: "on" is nearly "an".
            near = by_spelling(self.dataset, self.words, where=self.query.where, limit=self.depth)
            found = [near if ranking.way == "words" else ranking for ranking in found]
        return found

    def _possible(self) -> list[Way]:
        """The ways that these words, this picture or this row can be looked for by."""
        looked = self.query.picture is not None or self.like is not None
        if self.query.by == "auto" and looked and not self.words and self._has(of_pictures=True, joint=False):
            return [
                "picture"
            ]  # what it looks like is what is asked; other ways would only mix other things in
        ways: list[Way] = ["words", "meaning", "joint"] if self.words else []
        ways += ["picture", "joint"] if looked else []
        ways += ["meaning"] if self.like is not None else []
        if self.query.by == "auto" and len(ways) > 1 and not self._has(of_pictures=True, joint=True):
            ways = [way for way in ways if way != "joint"]  # of which a newcomer need not hear each time
        return [way for way in WAYS if way in ways]

    def _has(self, *, of_pictures: bool, joint: bool) -> bool:
        return bool(newest(self.columns, of_pictures=of_pictures, joint=joint))

    def _by_words(self) -> list[Ranked]:
        text = self.words
        if not text and self.like is not None:
            text = " ".join(self._captions(self.like))
        if not (self.dataset.captions or self.dataset.labels) or not text:
            raise Unavailable(MISSING["words"])
        self._index_words()
        return [by_words(self.dataset, text, where=self.query.where, limit=self.depth)]

    def _index_words(self) -> None:
        """Makes the index of words or brings it up to date; where the table cannot be written, it goes without."""
        try:
            if not self.dataset.pinned:
                index_words(self.dataset)
        except UserError as error:
            self.remarks.append(str(error))
        if not indexed(self.dataset):
            self.remarks.append("words are not indexed, so only those between spaces are found, and slowly")

    def _by_meaning(self) -> list[Ranked]:
        columns = newest(self.columns, of_pictures=False, joint=False)
        if not columns:
            raise Unavailable(self._missing("meaning"))
        # Columns of one space: the words have one vector for all of them.
        vectors = (
            dict.fromkeys(columns, self._text_vector(columns[0])) if self.words else self._stored(columns)
        )
        best: dict[int, tuple[float, str]] = {}
        for column, found in self._nearest(vectors).items():
            for row, score in found:
                if score > best.get(row, (0.0, ""))[0]:
                    best[row] = (score, f"means alike, {score:.2f}, in {column.of}")
        order = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))[: self.depth]
        return [_ranked("meaning", [(row, score, words) for row, (score, words) in order])]

    def _by_picture(self) -> list[Ranked]:
        found, unknown = [], False
        data = self.query.picture
        if data is not None:
            same, self.verdict, remarks = self._same(data)  # of all pictures, whatever the condition
            self.remarks += remarks
            unknown = not len(same.rows)
            if self.query.where:
                same = _kept(same, np.isin(same.rows, self.dataset.indices(None, self.query.where)))
            found += [same] if len(same.rows) else []
        columns = newest(self.columns, of_pictures=True, joint=False)
        if not columns:
            if data is None:
                raise Unavailable(self._missing("picture"))
            self.remarks.append(self._missing("picture"))
            return found or [_ranked("picture", [])]
        column = columns[0]
        vectors = self._stored([column]) if data is None else {column: self._picture_vector(column, data)}
        alike = self._nearest(vectors).get(column, [])
        known = set(found[0].rows.tolist()) if found else set()
        first = [
            (int(r), float(s), w) for f in found for r, s, w in zip(f.rows, f.scores, f.words, strict=True)
        ]
        rest = [(row, score, f"looks alike, {score:.2f}") for row, score in alike if row not in known]
        if unknown and alike:
            here = " under this condition" if self.query.where else ""
            self.verdict += f"; closest match{here}: similarity {alike[0][1]:.2f}"
        return [replace(_ranked("picture", [*first, *rest]), certain=len(first))]

    def _by_joint(self) -> list[Ranked]:
        columns = newest(self.columns, of_pictures=True, joint=True)
        if not columns:
            raise Unavailable(self._missing("joint"))
        column = columns[0]
        asked = [{column: self._text_vector(column)}] if self.words else []
        if self.query.picture is not None:
            asked.append({column: self._picture_vector(column, self.query.picture)})
        elif self.like is not None:
            asked.append(self._stored([column]))
        best: dict[int, float] = {}
        for vectors in asked:
            for row, score in self._nearest(vectors).get(column, []):
                best[row] = max(score, best.get(row, -1.0))
        order = sorted(best.items(), key=lambda item: (-item[1], item[0]))[: self.depth]
        return [_ranked("joint", [(row, score, f"fits, {score:.2f}") for row, score in order])]

    def _nearest(
        self, vectors: Mapping[VectorColumn, _Vector]
    ) -> dict[VectorColumn, list[tuple[int, float]]]:
        """Rows and cosines of each column, without the row that is itself looked for; all are asked at once."""

        def ask(column: VectorColumn) -> list[tuple[int, float]]:
            rows, scores = nearest(
                self.dataset, column, vectors[column], limit=self.depth + 1, where=self.query.where
            )
            pairs = zip(rows.tolist(), scores.tolist(), strict=True)
            return [(row, score) for row, score in pairs if row != self.like]

        if lack := max((lacking(self.dataset, column) for column in vectors), default=0):
            name = next(iter(vectors)).embedder
            self._remark(
                f"{lack} pictures have no vectors of {name} yet and are not among these: "
                f"encode {self.dataset.path} again"
            )
        if len(vectors) < 2:
            return {column: ask(column) for column in vectors}
        with ThreadPoolExecutor(min(_AT_ONCE, len(vectors))) as pool:
            return dict(zip(vectors, pool.map(ask, vectors), strict=True))

    def _remark(self, words: str) -> None:
        if words not in self.remarks:
            self.remarks.append(words)

    def _text_vector(self, column: VectorColumn) -> _Vector:
        if not any(letter.isalnum() for letter in self.words):
            raise Unavailable(f"there is no word in {self.words!r}")
        embedder = self._embedder(column)
        assert embedder.texts is not None
        vector: _Vector = embedder.texts([self.words])[0]
        return vector

    def _picture_vector(self, column: VectorColumn, data: bytes) -> _Vector:
        embedder = self._embedder(column)
        assert embedder.pictures is not None
        assert embedder.size is not None
        try:
            seen = pixels(data, embedder.size, 3, span=self.dataset.span("image"))
        except BadPicture as error:
            raise UserError(f"the picture to look for cannot be used: {error}") from None
        vector: _Vector = embedder.pictures(torch.stack([seen]))[0]
        return vector

    def _same(self, data: bytes) -> tuple[Ranked, str, list[str]]:
        try:
            return by_bytes_and_hash(self.dataset, data)
        except BadPicture as error:
            raise UserError(f"the picture to look for cannot be used: {error}") from None

    def _stored(self, columns: Sequence[VectorColumn]) -> dict[VectorColumn, _Vector]:
        """The vectors of the row to find more like, of the columns that it has some in."""
        assert self.like is not None
        told = self.dataset.take([self.like], [column.column for column in columns])
        found = {
            c: np.asarray(value, np.float32) for c in columns if (value := told[c.column][0]) is not None
        }
        return {column: vector for column, vector in found.items() if vector.any()}

    def _embedder(self, column: VectorColumn) -> Any:
        try:
            return self.embedder_of(column)
        except UserError as error:
            raise Unavailable(str(error)) from None

    def _captions(self, row: int) -> Sequence[str]:
        columns = list(self.dataset.captions.values())
        told = self.dataset.take([row], columns)
        return [told[name][0] for name in columns if told[name][0]]

    def _missing(self, way: Way) -> str:
        return MISSING[way].format(path=self.dataset.path)


def _ranked(way: Way, found: Sequence[tuple[int, float, str]]) -> Ranked:
    rows = np.array([row for row, _, _ in found], np.int64)
    return Ranked(way, rows, np.array([score for _, score, _ in found]), [words for _, _, words in found])


def _kept(ranked: Ranked, there: npt.NDArray[np.bool_]) -> Ranked:
    """Those of a ranking where ``there`` holds."""
    words = [word for word, keep in zip(ranked.words, there.tolist(), strict=True) if keep]
    certain = int(there[: ranked.certain].sum())
    return Ranked(ranked.way, ranked.rows[there], ranked.scores[there], words, certain)


def _row_of(dataset: Dataset, like: int | str) -> int:
    """The row number; UserError where there is none, or several ids begin so."""
    text = str(like)
    if re.fullmatch(r"0|[1-9][0-9]*", text) and int(text) < len(dataset):
        return int(text)
    if not re.fullmatch(r"[0-9a-f]{6,64}", text):
        raise UserError(
            f"there is no row {text!r}: expected a number from 0 to {len(dataset) - 1}, or six or more digits of an id"
        )
    rows = dataset.indices(None, f"starts_with(id, '{text}')")
    if len(rows) != 1:
        raise UserError(f"{len(rows)} pictures have an id that begins with {text}")
    return int(rows[0])


def hits_of(dataset: Dataset, fused: Sequence[Fused]) -> list[Hit]:
    """The rows that were found, with what is to be shown of each."""
    names = [name for name in (*_SHOWN, *dataset.captions.values()) if name in dataset.columns]
    told = dataset.take([f.row for f in fused], names) if fused else {}
    several = len(sources_of(dataset.about)) > 1  # so that two may have a file of one name
    places, hits = places_of(dataset, [f.row for f in fused] if several else []), []
    places += [None] * (len(fused) - len(places))
    for place, found in enumerate(fused):
        values = {name: told[name][place] for name in names if told[name][place] is not None}
        if places[place] is not None:
            values["from"] = places[place]
        hits.append(Hit(found.row, values.pop("id"), found.score, found.reasons, values))
    return hits


_K = 60  # theirs


class Fused(NamedTuple):
    """A row, its score, and how each way found it."""

    row: int
    score: float
    reasons: list[Reason]


def in_depths(rankings: Sequence[Ranked], first: int, depth: int) -> list[Fused]:
    """As `fuse`, of ``first`` places of each ranking, then of twice as many, up to ``depth``.

    What only lies deeper comes behind what was found before, so that one page follows on another; no score is above
    the one before it.
    """
    if len(rankings) == 1:
        return _falling(fuse(rankings))
    order: dict[int, Fused] = {}
    while True:
        cut = [Ranked(r.way, r.rows[:first], r.scores[:first], r.words[:first], r.certain) for r in rankings]
        for one in fuse(cut):
            order.setdefault(one.row, one)
        if first >= depth:
            return _falling(order.values())
        first *= 2


def _falling(ordered: Iterable[Fused]) -> list[Fused]:
    lowest, found = math.inf, []
    for one in ordered:
        lowest = min(lowest, one.score)
        found.append(one._replace(score=lowest))
    return found


def fuse(rankings: Sequence[Ranked]) -> list[Fused]:
    """Best first; the score is the sum of 1 / (60 + rank), of a single way that way's own."""
    found: dict[int, Fused] = {}
    for ranking in rankings:
        for place, row in enumerate(ranking.rows.tolist()):
            rank, score = place + 1, float(ranking.scores[place])
            reason = Reason(ranking.way, rank, score, ranking.words[place], place < ranking.certain)
            share = 1 / (_K + rank) if len(rankings) > 1 else score
            before = found.get(row, Fused(row, 0.0, []))
            found[row] = Fused(row, before.score + share, [*before.reasons, reason])
    if len(rankings) == 1:
        return list(found.values())  # in its own order: of words, all come before some
    return sorted(found.values(), key=lambda f: (-f.score, f.row))
