"""`carrara doctor`: why a run makes noise, or came apart, and what to change."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from carrara.cli.options import Json, RunFolder, options
from carrara.config import Config
from carrara.errors import UserError, one_line
from carrara.terminal import Bar, console

if TYPE_CHECKING:
    from carrara.doctor.finding import Check
    from carrara.generation.model import Model


class Sampling(Config):
    """How the pictures were made that look bad."""

    picture: Path | None = Field(
        None, description="A PNG that the model made; the sampling settings are read from it."
    )
    sampler: str | None = Field(None, description="Sampler that was used, if there is no PNG.")
    steps: int | None = Field(None, description="Number of sampling steps that were used.")
    grid: str | None = Field(None, description="Spacing of the steps that was used.")
    guidance: str | None = Field(None, description="Guidance that was used.")
    as_json: Json = False


@options(Sampling)
def doctor(
    run: RunFolder,
    sampling: Sampling,
    dataset: Annotated[
        Path | None, typer.Argument(help="The data set it was trained on; without it, fewer checks are made.")
    ] = None,
) -> None:
    """Diagnose why a model makes bad pictures, or a joint space finds little; status 1 if something is found."""
    from carrara.doctor.examine import document, serious_first

    looks, checks = _looks(run, dataset, sampling), []
    if sampling.as_json:
        checks = [check for _, check in looks]
    else:
        with Bar("doctor") as bar:
            for done, check in looks:
                checks.append(check)
                bar.show(done, check.name)
    checks = list(serious_first(checks))
    if sampling.as_json:
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


def _looks(run: Path, dataset: Path | None, sampling: Sampling) -> Iterable[tuple[float, Check]]:
    """The checks of a run one by one, each with the share that is done."""
    from carrara.dataset.dataset import Dataset
    from carrara.doctor.examine import examine
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
    given = sampling.model_dump(include={"sampler", "steps", "grid", "guidance"})
    if isinstance(recipe, ContrastiveRecipe):
        if sampling.picture or any(given.values()):
            raise UserError(f"{run} is the run of a space of texts and pictures, which samples nothing")
        return examine_joint(JointPatient(run, recipe, data))
    patient = Patient(run, recipe, data)
    if sampling.picture:
        stored = _of_picture(sampling.picture, patient.model)
        given = stored | {name: value for name, value in given.items() if value is not None}
    return examine(patient, settings_for(patient.model, given))


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
