"""`carrara doctor`: why a run makes noise, or came apart, and what to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.errors import UserError, one_line
from carrara.terminal import Bar, console

if TYPE_CHECKING:
    from carrara.generation.model import Model


def doctor(
    run: Annotated[Path, typer.Argument(help="A run's folder, finished or not.")],
    dataset: Annotated[
        Path | None, typer.Argument(help="The data set it was trained on; without it, fewer checks are made.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="A PNG that the model made; the sampling settings are read from it.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler that was used, if there is no PNG.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of sampling steps that were used.")] = None,
    grid: Annotated[str | None, typer.Option(help="Spacing of the steps that was used.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance that was used.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all checks as JSON.")] = False,
) -> None:
    """Diagnose why a model makes bad pictures, or a joint space finds little; status 1 if something is found."""
    from carrara.dataset.dataset import Dataset
    from carrara.doctor.examine import document, examine, serious_first
    from carrara.doctor.joint_space import JointPatient, examine_joint
    from carrara.doctor.opened_run import Patient
    from carrara.generation.sample import settings_for
    from carrara.recipes.catalogue import named
    from carrara.training.recipe import AutoencoderRecipe, ContrastiveRecipe
    from carrara.training.run_changes import recipe_file

    recipe = named(str(recipe_file(run, lambda file: named(str(file)))))
    if isinstance(recipe, AutoencoderRecipe):
        raise UserError(
            f"{run} is the run of an autoencoder, which `carrara inspect autoencoder {run} DATA` looks at; expected "
            "that of a diffusion model"
        )
    data = Dataset.open(dataset) if dataset else None
    given = {"sampler": sampler, "steps": steps, "grid": grid, "guidance": guidance}
    if isinstance(recipe, ContrastiveRecipe):
        if picture or any(given.values()):
            raise UserError(f"{run} is the run of a space of texts and pictures, which samples nothing")
        looks = examine_joint(JointPatient(run, recipe, data))
    else:
        patient = Patient(run, recipe, data)
        if picture:
            given = _of_picture(picture, patient.model) | {k: v for k, v in given.items() if v is not None}
        looks = examine(patient, settings_for(patient.model, given))
    checks = []
    if as_json:
        checks = [check for _, check in looks]
    else:
        with Bar("doctor") as bar:
            for done, check in looks:
                checks.append(check)
                bar.show(done, check.name)
    checks = list(serious_first(checks))
    if as_json:
        typer.echo(json.dumps(document(checks), indent=2, ensure_ascii=False))
    else:
        for check in checks:
            mark = "?" if check.skipped else "✗" if check.findings else "✓"
            words = f"not checked: {check.saw}" if check.skipped else check.saw
            console.print(f"{mark} {check.name}: {words}", soft_wrap=True)
            for finding in check.findings:
                console.print(f"    {'' if finding.serious else '(minor) '}{finding.words}", soft_wrap=True)
                console.print(f"    -> {finding.fix}", soft_wrap=True)
    if any(check.findings for check in checks):
        raise typer.Exit(1)


def _of_picture(picture: Path, model: Model) -> dict[str, Any]:
    """The settings in a PNG; UserError where it holds none, or is of another model."""
    from carrara.generation.png import read_recipe

    try:
        found = read_recipe(picture)
    except OSError as error:
        raise UserError(f"cannot read {picture}: {one_line(error)}") from None
    if "model" in found and found["model"] != model.hash:
        raise UserError(f"{picture} was made by another model than this run's")
    return {key: found.get(key) for key in ("sampler", "steps", "grid", "guidance")}
