"""`carrara data search`, and what `carrara data encode` and `carrara train contrastive` do for it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.cli_engine import HERE, Hands
from carrara.cli_models import writable
from carrara.cli_progress import show
from carrara.console import console
from carrara.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from carrara.data.search.contract import Found, Hit
    from carrara.data.table import Dataset

_COLUMNS_OF_A_SHEET = 6
_LISTED = 20  # of what goes into a data set


def search(
    dataset: Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")],
    words: Annotated[str, typer.Argument(help="What to look for, in any language.")] = "",
    picture: Annotated[
        Path | None, typer.Option(help="A picture file: is it in the data set, and what looks like it?")
    ] = None,
    like: Annotated[str | None, typer.Option(help="Number or id of a row, to find more like it.")] = None,
    by: Annotated[
        str, typer.Option(help="Way of searching: words, meaning, picture, joint, or hybrid (all together).")
    ] = "auto",
    where: Annotated[
        str | None,
        typer.Option(help="SQL condition that must hold, e.g. \"split = 'train' AND width >= 256\"."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Number of pictures to show.")] = 20,
    skip: Annotated[int, typer.Option(help="Number of best matches to skip, for the next page.")] = 0,
    at_least: Annotated[
        float | None,
        typer.Option(
            min=-1, max=1, help="Lowest similarity (up to 1) of matches that are not found by words."
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Make a data set of what matches: has all of the words, is the same picture, or is as similar "
            "as --at-least says.",
            callback=writable,
        ),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a PNG that shows what was found.", callback=writable)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Find pictures by words in any language, by meaning, by likeness, or by what they show."""
    import numpy as np

    from carrara.config import parse
    from carrara.data.search.contract import Query
    from carrara.data.search.search import search as find
    from carrara.data.subset import subset
    from carrara.data.table import Dataset
    from carrara.evaluation.embedders.opening import carry, embedder_of

    given: dict[str, Any] = {
        "words": words,
        "like": like,
        "by": by,
        "where": where,
        "limit": limit,
        "offset": skip,
        "at_least": at_least,
        "matching": into is not None,
    }
    if picture is not None:
        given["picture"] = _bytes_of(picture)
    query = parse(Query, given, where="the search")
    pictures = Dataset.open(dataset)
    found = find(pictures, query, lambda column: embedder_of(pictures, column))
    if into and not found.hits:
        why = "" if at_least is not None else "; --at-least 0.5 (of 1) takes what is similar, too"
        raise UserError(f"nothing matches, so {into} was not made{why}")
    if sheet and found.hits:
        _sheet(pictures, found.hits, sheet)
    if as_json:
        typer.echo(json.dumps(found.document(), indent=2, ensure_ascii=False))
    else:
        _show(found, pictures.path, sheet if found.hits else None, most=_LISTED if into else limit)
    if into:
        rows = np.array([hit.row for hit in found.hits], np.int64)
        made = subset(pictures, np.sort(rows), into, why=_why(query.words, picture, like, by, where))
        carry(pictures, made)
        if not as_json:
            console.print(f"{made.path}: {len(made)} pictures", soft_wrap=True)


def chosen_embedders(features: bool, meaning: bool, others: Sequence[str]) -> list[str]:
    """The embedders that the flags and names of `carrara data encode` mean."""
    from carrara.evaluation.embedders.opening import PICTURES, TEXTS

    return [*([PICTURES] if features else []), *([TEXTS] if meaning else []), *others]


def embed_all(dataset: Dataset, chosen: Sequence[str], hands: Hands = HERE) -> None:
    """Embeds, with a bar each, what these embedders can and is missing, and says where it is."""
    from carrara.data.derive import shown
    from carrara.data.perceptual_hash import derive_glances
    from carrara.evaluation.embedders.encode import embed_missing
    from carrara.evaluation.embedders.opening import open_embedder

    for given in chosen:
        embedder = open_embedder(given)
        columns = list(dataset.captions.values())
        if embedder.pictures is None and not columns:
            raise UserError(f"{dataset.path} has no captions whose meaning could be stored")
        if embedder.pictures is not None and not embedder.joint:
            show(shown("perceptual hashes", derive_glances(dataset, by=hands.glances())))
        # In a joint space the pictures are what is found; a text comes with the question.
        for of in ["image"] if embedder.pictures is not None else columns:
            by, build = hands.vectors(given, of), hands.indexes()
            show(embed_missing(dataset, embedder, of, by=by, build=build))
    if chosen:
        console.print(f'next: carrara data search {dataset.path} "a red cap"', soft_wrap=True)


def show_recall(dataset: Dataset, out: Path) -> None:
    """How well held-out pairs find each other in the space of a finished run."""
    from carrara.model_folder import read_passport

    held_out = read_passport(out / "model").get("held_out")
    if held_out:
        console.print(f"{out / 'model'}: {held_out['protocol']}", soft_wrap=True)
        console.print(f"{'':10}{'text to picture':>24}{'picture to text':>24}")
        console.print(" " * 10 + "".join(f"{f'at {k}':>8}" for k in (1, 5, 10, 1, 5, 10)))
        for language, ways in held_out["by_language"].items():
            parts = [ways[way] for way in ("text to picture", "picture to text")]
            cells = "".join(f"{part[f'recall_{k}']:8.0%}" for part in parts for k in (1, 5, 10))
            console.print(f"{language:10}{cells}")
        if repeated := sorted(column for column in dataset.captions.values() if _repeat(dataset, column)):
            console.print(
                f"note: captions repeat ({', '.join(repeated)}): a picture cannot be told from others with the same "
                "words, so recall from picture to text stays low",
                soft_wrap=True,
            )
    console.print(f"next: carrara data encode {dataset.path} --embedder {out}", soft_wrap=True)


def _repeat(dataset: Dataset, column: str) -> bool:
    """Whether a fifth or more of the held-out captions stand at another held-out picture, too."""
    rows = dataset.indices("held_out")
    texts = [text for text in dataset.take(rows, [column])[column] if text]
    return len(set(texts)) < 0.8 * len(texts)


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


def _why(words: str, picture: Path | None, like: str | None, by: str, where: str | None) -> str:
    parts = [f"words {words!r}" if words else "", f"picture {picture}" if picture else ""]
    parts += [
        f"like {like}" if like else "",
        f"by {by}" if by != "auto" else "",
        f"where {where}" if where else "",
    ]
    return "search: " + (", ".join(part for part in parts if part) or "everything")


def _show(found: Found, dataset: Path, sheet: Path | None, *, most: int) -> None:
    """The answer for a person, with at most so many hits."""
    for remark in found.remarks:
        console.print(f"note: {remark}", soft_wrap=True)
    if found.verdict:
        console.print(found.verdict, soft_wrap=True)
    for place, hit in enumerate(found.hits[:most], 1):
        why = "; ".join(reason.words for reason in hit.reasons)
        told = f"  ({why})" if why else ""
        score = f"{hit.score:7.4f}  " if hit.reasons else ""
        console.print(f"{place:3}  {score}row {hit.row}  {_called(hit)}{told}", soft_wrap=True)
    if len(found.hits) > most:
        console.print(f"… and {len(found.hits) - most} more")
    if not found.hits:
        console.print("nothing found")
    ways = f"by {', '.join(dict.fromkeys(found.ways))}, " if found.ways else ""
    more = "; there are more (--skip, --limit)" if found.more else ""
    console.print(
        f"{len(found.hits)} of {found.pictures} pictures of {dataset} (version {found.version}), {ways}"
        f"{found.seconds * 1000:.0f} ms{more}",
        soft_wrap=True,
    )
    if sheet:
        console.print(str(sheet), soft_wrap=True)


def _called(hit: Hit) -> str:
    """What a picture is called: its English or first caption, else its label, else where it came from."""
    captions = {name: text for name, text in hit.told.items() if name.startswith("caption")}
    text = captions.get("caption_en") or captions.get("caption") or next(iter(captions.values()), None)
    source = " of ".join(str(hit.told[name]) for name in ("source", "from") if name in hit.told)
    named = text or hit.told.get("label") or source or hit.id[:12]
    return textwrap.shorten(str(named), 100, placeholder=" …")


def _sheet(dataset: Dataset, hits: Sequence[Hit], path: Path) -> None:
    """The pictures in rows of six with their numbers, whole in their squares; written whole or not at all."""
    from carrara.evaluation.plates import Row, plate

    side, rows = 128, []
    for start in range(0, len(hits), _COLUMNS_OF_A_SHEET):
        part = hits[start : start + _COLUMNS_OF_A_SHEET]
        data = dataset.take([hit.row for hit in part], ["image"])["image"]
        squares = [_square(found, side, dataset.span("image")) for found in data]
        rows.append(Row("", squares, [f"{hit.row}: {hit.score:.3f}" for hit in part]))
    part_file = path.with_name(path.name + ".part")
    try:
        plate(rows, side=side).save(part_file, "PNG")
        part_file.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _square(data: bytes, side: int, span: tuple[float, float] | None) -> Image.Image:
    """A picture, whole, on a white square."""
    from PIL import Image, ImageOps

    from carrara.data.pictures import decode

    picture = decode(data, short_side=side, span=span).convert("RGB")
    return ImageOps.pad(picture, (side, side), Image.Resampling.LANCZOS, "white")
