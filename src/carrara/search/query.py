"""A query and what is found: the same for the command line, the page and the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, get_args

from pydantic import Field, field_validator, model_validator

from carrara.config import Config

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from carrara.search.vector_columns import VectorColumn

Condition = Annotated[
    str | None,
    Field(description="SQL condition that must hold, e.g. \"split = 'train' AND width >= 256\"."),
]
Way = Literal["words", "meaning", "picture", "joint"]
WAYS: tuple[Way, ...] = get_args(Way)
MOST = 10_000  # hits of one answer


class Query(Config):
    """What to look for. Without words, picture and row it lists the pictures for which ``where`` holds."""

    words: str = Field(
        "",
        max_length=4000,
        description="What to look for, in any language.",
        json_schema_extra={"argument": True},
    )
    picture: bytes | None = Field(
        None, repr=False, description="Picture file to look for, along with pictures that look like it."
    )
    like: Annotated[int, Field(le=2**62)] | str | None = Field(
        None, description="Number or id of a row, to find more like it."
    )
    by: Literal["auto", "hybrid", "words", "meaning", "picture", "joint"] = Field(
        "auto", description="Way of searching; hybrid takes all ways, and auto those that suit the question."
    )
    where: Condition = None
    limit: int = Field(20, ge=1, le=MOST, description="Number of pictures to show.")
    offset: int = Field(
        0,
        ge=0,
        le=MOST,
        description="Number of best matches to skip, for the next page.",
        json_schema_extra={"flag": "--skip"},
    )
    matching: bool = Field(
        False,
        description="Only what has all of the words, is the same picture, or is as similar as at_least says.",
        json_schema_extra={"flag": None},
    )
    at_least: float | None = Field(
        None, ge=-1, le=1, description="Lowest similarity (up to 1) of matches that are not found by words."
    )

    @field_validator("where")
    @classmethod
    def _says_something(cls, value: str | None) -> str | None:
        return value if value and value.strip() else None

    @model_validator(mode="after")
    def _can_be_looked_for(self) -> Query:
        told = bool(self.words.strip()) or self.picture is not None or self.like is not None
        if self.by in WAYS and not told:
            raise ValueError(f"nothing to look for by {self.by}: give words, a picture or a row")
        if self.picture is not None and self.like is not None:
            raise ValueError("a picture and a row at once: give one of them")
        if self.by in ("words", "meaning") and self.picture is not None:
            raise ValueError(f"a picture cannot be looked for by {self.by}; expected picture, joint or auto")
        if self.by == "picture" and self.words.strip():
            raise ValueError("words cannot be looked for by picture; expected words, meaning, joint or auto")
        return self


@dataclass(frozen=True)
class Reason:
    """Why a picture was found: by which way, at which rank (from 1), and what its score there is, in words too.

    ``certain`` is whether it has all of the words or is the same picture; all else is only more or less alike.
    """

    way: Way
    rank: int
    score: float
    words: str
    certain: bool = False


@dataclass(frozen=True)
class Hit:
    """A picture that was found. ``score`` orders the hits of one answer; ``told`` are its columns to show."""

    row: int
    id: str
    score: float
    reasons: Sequence[Reason]
    told: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """The hits, best first, with the table's ``version``; ``remarks`` say what could not be used or should be known.

    ``verdict`` answers "is this picture among them?", where one was given. ``more`` is whether there is a next page.
    """

    hits: Sequence[Hit]
    ways: Sequence[Way]
    version: int
    pictures: int
    more: bool
    seconds: float
    verdict: str = ""
    remarks: Sequence[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Ready for JSON."""
        hits = [
            {
                "row": hit.row,
                "id": hit.id,
                "score": round(hit.score, 6),
                "reasons": [{**vars(r), "score": round(r.score, 6)} for r in hit.reasons],
                **hit.told,
            }
            for hit in self.hits
        ]
        return {**vars(self), "hits": hits, "ways": list(self.ways), "remarks": list(self.remarks)}


@dataclass(frozen=True)
class Ranked:
    """Rows that one way found, best first, without repeats: their scores, and the reason in words.

    The first ``certain`` of them have all of the words, or are the same picture.
    """

    way: Way
    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    words: Sequence[str]
    certain: int = 0


class Embeds(Protocol):
    """What a search needs of an embedder (see `evaluation.embedders.contract.Embedder`)."""

    @property
    def size(self) -> int | None: ...
    @property
    def texts(self) -> Callable[[Sequence[str]], npt.NDArray[np.float32]] | None: ...
    @property
    def pictures(self) -> Callable[[Tensor], npt.NDArray[np.float32]] | None: ...


EmbedderOf = Callable[["VectorColumn"], Embeds]  # UserError where it is not on this machine
