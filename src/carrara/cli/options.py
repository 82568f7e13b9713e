"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Engine = Annotated[
    str,
    typer.Option(
        help="Where the work is done: local (this process) or ray (workers; RAY_ADDRESS names a cluster)."
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="ray only: number of workers; by default one per processor.")
]
