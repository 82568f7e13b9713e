"""`carrara data search`, and what `carrara data encode` and `carrara train contrastive` do for it.

`carrara data browse`: a data set as a page on this machine.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import socket
import sys
import textwrap
import webbrowser
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from pydantic import Field

from carrara.cli.options import DatasetFolder, Destination, Json, options
from carrara.cli.progress import show
from carrara.config import Config
from carrara.errors import UserError, one_line
from carrara.files import write_atomically
from carrara.ray_engine.engine import HERE, Hands
from carrara.search.query import Query
from carrara.terminal import console

if TYPE_CHECKING:
    from PIL import Image

    from carrara.dataset.dataset import Dataset
    from carrara.search.query import Found, Hit


_COLUMNS_OF_A_SHEET = 6
_LISTED = 20  # of what goes into a data set


class Outcome(Config):
    """What becomes of the pictures that were found."""

    into: Destination | None = Field(
        None,
        description="Make a data set of the pictures that have all of the words, are the same picture, or are as "
        "similar as --at-least says.",
    )
    sheet: Destination | None = Field(None, description="Write a PNG that shows what was found.")
    as_json: Json = False


@options(Query, Outcome)
def search(context: typer.Context, dataset: DatasetFolder, query: Query, outcome: Outcome) -> None:
    """Find pictures by words in any language, by meaning, by likeness, or by what they show."""
    from carrara.dataset.dataset import Dataset
    from carrara.embedders.embedders import embedder_of
    from carrara.search.search import search as find

    into, sheet = outcome.into, outcome.sheet
    query = query.model_copy(update={"matching": into is not None})
    pictures = Dataset.open(dataset)
    found = find(pictures, query, lambda column: embedder_of(pictures, column))
    if into and not found.hits:
        why = "" if query.at_least is not None else "; --at-least 0.5 (of 1) takes what is similar, too"
        raise UserError(f"nothing matches, so {into} was not made{why}")
    if sheet and found.hits:
        _sheet(pictures, found.hits, sheet)
    if outcome.as_json:
        typer.echo(json.dumps(found.document(), indent=2, ensure_ascii=False))
    else:
        most = _LISTED if into else query.limit
        _show(found, pictures.path, sheet if found.hits else None, most=most)
    if into:
        made = _kept(pictures, found, into, _why(query, context.params["picture"]))
        if not outcome.as_json:
            console.print(f"{made.path}: {len(made)} pictures", soft_wrap=True)


def _kept(pictures: Dataset, found: Found, into: Path, why: str) -> Dataset:
    """A data set of what was found."""
    import numpy as np

    from carrara.dataset.subset import subset
    from carrara.embedders.embedders import carry

    rows = np.array([hit.row for hit in found.hits], np.int64)
    made = subset(pictures, np.sort(rows), into, why=why)
    carry(pictures, made)
    return made


def chosen_embedders(features: bool, meaning: bool, others: Sequence[str]) -> list[str]:
    """The embedders that the flags and names of `carrara data encode` mean."""
    from carrara.embedders.embedders import PICTURES, TEXTS

    return [*([PICTURES] if features else []), *([TEXTS] if meaning else []), *others]


def embed_all(dataset: Dataset, chosen: Sequence[str], hands: Hands = HERE) -> None:
    """Embeds, with a bar each, what these embedders can and is missing, and says where it is."""
    from carrara.dataset.fingerprints import derive_glances
    from carrara.embedders.embed_dataset import embed_missing
    from carrara.embedders.embedders import open_embedder

    for given in chosen:
        embedder = open_embedder(given)
        columns = list(dataset.captions.values())
        if embedder.pictures is None and not columns:
            raise UserError(f"{dataset.path} has no captions whose meaning could be stored")
        if embedder.pictures is not None and not embedder.joint:
            show(derive_glances(dataset, by=hands.glances()))
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


def _why(query: Query, picture: Path | None) -> str:
    parts = [
        f"words {query.words!r}" if query.words else "",
        f"picture {picture}" if picture else "",
        f"like {query.like}" if query.like else "",
        f"by {query.by}" if query.by != "auto" else "",
        f"where {query.where}" if query.where else "",
    ]
    return "search: " + (", ".join(filter(None, parts)) or "everything")


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
    from carrara.pages.picture_grid import Row, plate

    side, rows = 128, []
    for start in range(0, len(hits), _COLUMNS_OF_A_SHEET):
        part = hits[start : start + _COLUMNS_OF_A_SHEET]
        data = dataset.take([hit.row for hit in part], ["image"])["image"]
        squares = [_square(found, side, dataset.span("image")) for found in data]
        rows.append(Row("", squares, [f"{hit.row}: {hit.score:.3f}" for hit in part]))
    file = io.BytesIO()
    plate(rows, side=side).save(file, "PNG")
    write_atomically(path, file.getvalue())


def _square(data: bytes, side: int, span: tuple[float, float] | None) -> Image.Image:
    """A picture, whole, on a white square."""
    from PIL import Image, ImageOps

    from carrara.images.decode import decode

    picture = decode(data, short_side=side, span=span).convert("RGB")
    return ImageOps.pad(picture, (side, side), Image.Resampling.LANCZOS, "white")


_LINGER = 2  # seconds that an answer under way may still take when the server ends


class Browsing(Config):
    """Where the page of a data set is, and what it may do."""

    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    host: str = Field("127.0.0.1", description="Address to listen on; only this machine can reach 127.0.0.1.")
    show: bool = Field(
        True, description="Open the page in the browser.", json_schema_extra={"flag": "--open/--no-open"}
    )
    read_only: bool = Field(False, description="Keep the page from changing captions and marks.")


@options(Browsing)
def browse(dataset: DatasetFolder, chosen: Browsing) -> None:
    """Look through a data set in the browser: search, filter, edit captions, and mark pictures to leave out."""
    try:
        import uvicorn

        from carrara.serving.app import browse_app
        from carrara.serving.localhost_only import CONNECTIONS, is_loopback
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("uvicorn", "fastapi", "starlette", "anyio"):
            raise
        raise UserError(f"{error.name} is not installed: pip install 'carrara[serve]'") from None
    from carrara.dataset.dataset import Dataset
    from carrara.embedders.embedders import embedder_of

    host = chosen.host
    names = [socket.gethostname()] if host not in ("127.0.0.1", "localhost", "::1") else []
    token = "" if chosen.read_only or not is_loopback(host) else secrets.token_urlsafe(16)
    app = browse_app(dataset, embedder_of=embedder_of, host=host, names=names, token=token)
    listening = _listen(host, chosen.port)
    # What follows the sign is never sent: only the page that was opened here knows it.
    address = _address(host, listening.getsockname()[1]) + (f"#{token}" if token else "")
    pictures = len(Dataset.open(dataset))
    console.print(f"{dataset}, {pictures} pictures: {address} (Ctrl-C ends it)", soft_wrap=True)
    if chosen.show and _has_screen():
        webbrowser.open(address)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            log_config=None,  # what other libraries log by stays as it is
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=_LINGER,
            lifespan="off",
            ws="none",
        )
    )
    # Ctrl-C arrives as an exception or as a plain return, as the server's loop happens to notice it.
    with closing(listening), suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    console.print("ended")


def _listen(host: str, port: int) -> socket.socket:
    """A socket there. UserError where that cannot be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError):
        raise UserError(f"there is no address called {host!r}; expected e.g. 127.0.0.1") from None
    made = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        reason = one_line(error).lower()
        raise UserError(
            f"cannot listen on port {port} of {host}: {reason}; another --port, or 0 for any free one"
        ) from None
    return made


def _address(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}/"


def _has_screen() -> bool:
    """Whether a browser would open in a window; elsewhere it would take the terminal."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
