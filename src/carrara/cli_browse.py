"""`carrara data browse`: a data set as a page on this machine."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import webbrowser
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated

import typer

from carrara.console import console
from carrara.errors import UserError

_LINGER = 2  # seconds that an answer under way may still take when the server ends


def browse(
    dataset: Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any free one.")] = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; only this machine can reach 127.0.0.1.")
    ] = "127.0.0.1",
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Let the page change nothing: no captions, no marks.")
    ] = False,
) -> None:
    """Look through a data set in the browser: search, filter, edit captions, and mark pictures to leave out."""
    try:
        import uvicorn

        from carrara.serving.browse import browse_app
        from carrara.serving.guard import CONNECTIONS, is_loopback
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("uvicorn", "fastapi", "starlette", "anyio"):
            raise
        raise UserError(f"{error.name} is not installed: pip install 'carrara[serve]'") from None
    from carrara.data.table import Dataset
    from carrara.evaluation.embedders.opening import embedder_of

    names = [socket.gethostname()] if host not in ("127.0.0.1", "localhost", "::1") else []
    token = "" if read_only or not is_loopback(host) else secrets.token_urlsafe(16)
    app = browse_app(dataset, embedder_of=embedder_of, host=host, names=names, token=token)
    listening = _listen(host, port)
    # What follows the sign is never sent: only the page that was opened here knows it.
    address = _address(host, listening.getsockname()[1]) + (f"#{token}" if token else "")
    pictures = len(Dataset.open(dataset))
    console.print(f"{dataset}, {pictures} pictures: {address} (Ctrl-C ends it)", soft_wrap=True)
    if show and _has_screen():
        webbrowser.open(address)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
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
        reason = (error.strerror or str(error)).lower()
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
