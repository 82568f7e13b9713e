"""The app that is a data set's page: what it answers over HTTP, and the page that asks (its sources are in
``page/``)."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException as HTTPError

from carrara.config import Config, parse, plain
from carrara.dataset.columns import KINDS
from carrara.errors import BadPicture, UserError, refusal
from carrara.search import query as contract
from carrara.search.by_picture import nearly_same
from carrara.search.search import MISSING
from carrara.search.vector_columns import newest, vector_columns
from carrara.serving import thumbnails
from carrara.serving.edits import HEADER, Edit, edit
from carrara.serving.localhost_only import LOOPBACK, SECONDS, UPLOAD, UPLOADS, Guard, is_loopback
from carrara.serving.opened_dataset import Standing, chosen_of, condition

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.search.query import Embeds
    from carrara.search.vector_columns import VectorColumn

STATIC = FilePath(__file__).parent / "static" / "browse"
_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_FOR_GOOD = "private, max-age=31536000, immutable"  # the address holds the hash of the picture's bytes
_LARGEST_ROW = 2**62
_ALIKE = 24  # near-duplicates that are shown
T = TypeVar("T")

Where = Annotated[str | None, Query(max_length=2000)]
Row = Annotated[int, Path(ge=0, le=_LARGEST_ROW)]
Id = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
Side = Annotated[int, Query(description="The longest side, one of a few.")]


class Page(Config):
    """Which part of an answer is wanted."""

    limit: int = Field(60, ge=1, le=500, strict=False, description="How many pictures to return.")
    offset: int = Field(0, ge=0, le=_LARGEST_ROW, strict=False, description="How many to skip.")


def browse_app(
    path: FilePath,
    *,
    embedder_of: Callable[[Dataset, VectorColumn], Embeds],
    host: str = LOOPBACK[0],
    names: Collection[str] = (),
    token: str = "",
) -> FastAPI:
    """The app for the data set in ``path``, to be reached at ``host`` and under further ``names``.

    Who sends ``token`` along may edit it, if ``host`` is on this machine; with none nobody may. UserError where
    there is no data set.
    """
    standing = Standing(path, embedder_of)
    token = token if is_loopback(host) and not standing.dataset.pinned else ""
    finding, arriving, editing = (CapacityLimiter(n) for n in (4, UPLOADS, 1))
    app = FastAPI(title="carrara data browse", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, host=host, names=names)
    _say_errors(app)
    _serve_page(app)

    @app.get("/api/dataset")
    async def dataset() -> Response:
        about = await _in_thread(finding, lambda: _about(standing.follow()))
        return _json({**about, "editable": bool(token)})

    @app.get("/api/facets")
    async def facets(request: Request, where: Where = None) -> Response:
        chosen = chosen_of(request.query_params.multi_items())
        counted = await _in_thread(finding, lambda: standing.counted(chosen, where))
        found = [{"name": name, "values": [vars(v) for v in values]} for name, values in counted.items()]
        return _json({"facets": found})

    @app.get("/api/search")
    async def search(request: Request) -> Response:
        return _json(await _in_thread(finding, lambda: _found(standing, request, None)))

    @app.post("/api/search")
    async def search_by_picture(request: Request) -> Response:
        data = await _body(request, arriving)
        return _json(await _in_thread(finding, lambda: _found(standing, request, data)))

    @app.get("/api/rows/{row}")
    async def record(row: Row) -> Response:
        return _json(await _in_thread(finding, lambda: thumbnails.record(standing.dataset, row)))

    @app.get("/api/rows/{row}/near")
    async def near(row: Row) -> Response:
        return _json(await _in_thread(finding, lambda: _near(standing.dataset, row)))

    @app.post("/api/pictures/{row}/{name}")
    async def change(row: Row, name: Id, request: Request) -> Response:
        if not token or not secrets.compare_digest(request.headers.get(HEADER, "").encode(), token.encode()):
            raise HTTPException(403, "this page may only look; open the address that the command printed")
        wanted = parse(Edit, _object(await _body(request, arriving)), where="the change")
        made = await _in_thread(editing, lambda: standing.edited(lambda old: edit(old, row, name, wanted)))
        return _json(await _in_thread(finding, lambda: thumbnails.record(made, row)))

    _serve_pictures(app, standing)
    return app


def _serve_pictures(app: FastAPI, standing: Standing) -> None:
    """Pictures as given and as thumbnails, in threads of their own: many thumbnails do not keep a search waiting."""
    drawing = CapacityLimiter(max(2, min(8, os.cpu_count() or 2)))

    @app.get("/api/pictures/{row}/{name}")
    async def picture(row: Row, name: Id) -> Response:
        data = await _in_thread(drawing, lambda: thumbnails.as_given(standing.dataset, row, name))
        return _picture(data, thumbnails.kind_of(data))

    @app.get("/api/pictures/{row}/{name}/seen")
    async def seen(row: Row, name: Id, side: Side = thumbnails.SIDES[1]) -> Response:
        side = _known(side)
        given = standing.dataset
        span = given.span("image")
        drawn = await _in_thread(
            drawing, lambda: thumbnails.seen(thumbnails.as_given(given, row, name), side, span)
        )
        return _picture(drawn, "image/webp")

    @app.get("/api/pictures/{row}/{name}/beside/{column}")
    async def seen_beside(row: Row, name: Id, column: str, side: Side = thumbnails.SIDES[1]) -> Response:
        side = _known(side)
        if column not in KINDS:
            raise thumbnails.NotThere(column)
        given = standing.dataset
        drawn = await _in_thread(
            drawing,
            lambda: thumbnails.seen_beside(
                thumbnails.as_given(given, row, name, column), column, side, given.span(column)
            ),
        )
        # The hash in the address is not that of the picture beside, which may be given anew.
        return _picture(drawn, "image/webp", keep="no-cache")


async def _in_thread(limiter: CapacityLimiter, work: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(work, limiter=limiter)


def _json(document: Any) -> JSONResponse:
    return JSONResponse(document, headers={"Cache-Control": "no-store"})


def _picture(data: bytes, kind: str, keep: str = _FOR_GOOD) -> Response:
    headers = {"Cache-Control": keep, "Content-Security-Policy": "default-src 'none'; sandbox"}
    if kind == "application/octet-stream":
        headers["Content-Disposition"] = "attachment"
    return Response(data, media_type=kind, headers=headers)


def _known(side: int) -> int:
    if side not in thumbnails.SIDES:
        raise UserError(f"no picture is {side} long; expected one of {', '.join(map(str, thumbnails.SIDES))}")
    return side


async def _body(request: Request, arriving: CapacityLimiter) -> bytes:
    """The whole of what is sent; refused as soon as it is too much, takes too long, or too many are under way."""
    data = bytearray()
    try:
        arriving.acquire_on_behalf_of_nowait(request)
    except anyio.WouldBlock:
        raise HTTPException(503, "other pictures are still being sent; try again in a while") from None
    try:
        with anyio.fail_after(SECONDS):
            async for part in request.stream():
                data += part
                if len(data) > UPLOAD:
                    raise HTTPException(413, f"more than {UPLOAD // 2**20} MiB")
    except TimeoutError:
        raise HTTPException(408, f"the picture did not arrive within {SECONDS} s") from None
    finally:
        arriving.release_on_behalf_of(request)
    return bytes(data)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError("the change is no JSON object")
    return found


def _about(dataset: Dataset) -> dict[str, Any]:
    """What the page must know before anything is asked."""
    columns = vector_columns(dataset)
    ways = {
        "words": bool(dataset.captions),
        "meaning": bool(newest(columns, of_pictures=False, joint=False)),
        "picture": bool(newest(columns, of_pictures=True, joint=False)),
        "joint": bool(newest(columns, of_pictures=True, joint=True)),
    }
    return {
        "name": dataset.path.name,
        "path": str(dataset.path),
        "version": dataset.version,
        "pictures": len(dataset),
        "languages": list(dataset.captions),
        "ways": [way for way in contract.WAYS if ways[way]],
        "missing": {way: MISSING[way].format(path=dataset.path) for way in contract.WAYS if not ways[way]},
    }


def _found(standing: Standing, request: Request, picture: bytes | None) -> dict[str, Any]:
    asked = request.query_params
    chosen = chosen_of(asked.multi_items())
    where = condition(standing.dataset, chosen, asked.get("where"))
    page = parse(Page, {name: asked[name] for name in ("limit", "offset") if name in asked}, where="the page")
    if picture is None and not asked.get("words", "").strip() and not asked.get("like"):
        found, total = standing.listed(where, page.limit, page.offset)
        return {**found.document(), "total": total, "condition": where}
    given = {name: asked[name] for name in ("words", "like", "by") if asked.get(name)}
    query = parse(
        contract.Query,
        {**given, "picture": picture, "where": where, "limit": page.limit, "offset": page.offset},
        where="the search",
    )
    return {**standing.found(query).document(), "total": None, "condition": where}


def _near(dataset: Dataset, row: int) -> dict[str, Any]:
    """What is nearly the same picture, the nearest first."""
    if row >= len(dataset):
        raise thumbnails.NotThere(row)
    found = nearly_same(dataset, bytes(dataset.take([row], ["image"])["image"][0]))
    if found is None:
        return {
            "hits": [],
            "remark": f"to see near-duplicates here: `carrara data encode {dataset.path} --features`",
        }
    pairs = [(int(r), int(b)) for r, b in zip(*found, strict=True) if r != row][:_ALIKE]
    ids = dataset.take([r for r, _ in pairs], ["id"])["id"] if pairs else []
    hits = [{"row": r, "id": name, "bits": bits} for (r, bits), name in zip(pairs, ids, strict=True)]
    return {"hits": hits, "remark": ""}


def _serve_page(app: FastAPI) -> None:
    """The few files of the page, each read once: no address becomes a path."""
    for address, (name, kind) in _FILES.items():
        app.add_api_route(f"/{address}", _file((STATIC / name).read_bytes(), kind), methods=["GET"])


def _file(data: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    return answer


def _say_errors(app: FastAPI) -> None:
    """Whatever goes wrong is one readable line."""

    def say(status: int, words: Callable[[Any], str]) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def answer(request: Request, error: Exception) -> Response:
            return JSONResponse({"error": words(error)}, status, headers={"Cache-Control": "no-store"})

        return answer

    app.add_exception_handler(UserError, say(400, str))
    app.add_exception_handler(BadPicture, say(422, lambda e: f"the picture cannot be shown: {e}"))
    app.add_exception_handler(
        thumbnails.NotThere, say(404, lambda _: "there is no such picture; reload the page")
    )
    app.add_exception_handler(HTTPError, _say_http)
    app.add_exception_handler(RequestValidationError, say(422, lambda e: f"not understood: {_first(e)}"))
    for kind in (OSError, ValueError, RuntimeError):
        app.add_exception_handler(kind, _say_unread)


async def _say_unread(request: Request, error: Exception) -> Response:
    """That the table's files cannot be read, such as of a data set that was removed; a fault of the program as such."""
    if (reason := refusal(error)) is None:
        raise error
    line = f"the data set cannot be read ({reason}); was it moved or removed?"
    return JSONResponse({"error": line}, 503, headers={"Cache-Control": "no-store"})


async def _say_http(request: Request, error: Exception) -> Response:
    """The line of an error that already has a status."""
    assert isinstance(error, HTTPError)
    return JSONResponse({"error": str(error.detail)}, error.status_code)


def _first(error: RequestValidationError) -> str:
    found = error.errors()[0]
    return f"{found['loc'][-1]}: {plain(found)}"
