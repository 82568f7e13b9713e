"""`carrara samplers`: every sampler, grid and guidance that `carrara sample` takes, with its options."""

from __future__ import annotations

import inspect

import typer


def samplers() -> None:
    """List the samplers, time grids and guidances of `carrara sample`, each with its options and a sentence."""
    from carrara.diffusion.grids import GRIDS
    from carrara.diffusion.guidance import GUIDANCES
    from carrara.diffusion.samplers import SAMPLERS

    for flag, table, more in (
        ("--sampler", SAMPLERS, "ddim:eta=0.5"),
        ("--grid", GRIDS, "karras:rho=5"),
        ("--guidance", GUIDANCES, "apg:4,limit=2; one after the other as in apg:4+rescale:amount=0.5"),
    ):
        typer.echo(f"{flag}, with options as in {more}")
        for name in table:
            options = ",".join(map(_shown, table.options(name).values()))
            typer.echo(f"  {name}{':' if options else ''}{options}\n      {table.sentence(name)}")


def _shown(option: inspect.Parameter) -> str:
    """An option with its default, as a user would write it; without one where there is none."""
    if option.default in (None, inspect.Parameter.empty):
        return option.name
    return f"{option.name}={str(option.default).lower()}"
