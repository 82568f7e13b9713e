"""All looks at a run, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from carrara.evaluation.doctor import course, latents, network, process
from carrara.evaluation.doctor.findings import Check
from carrara.evaluation.doctor.patient import Patient
from carrara.generation.generate import Settings
from carrara.training.run import read_stopped


def examine(patient: Patient, settings: Settings) -> Iterator[tuple[float, Check]]:
    """Each look when it is done, with how much of all is; ``settings`` are those that pictures were sampled with."""
    model, recipe = patient.model, patient.recipe
    looks: Sequence[Callable[[], Check]] = (
        lambda: course.losses(patient.lines, recipe.train, read_stopped(patient.folder)),
        lambda: course.amount(patient.lines, patient.dataset, bool(model.conditions)),
        lambda: latents.scale(patient),
        lambda: latents.cache(patient),
        lambda: process.terminal(model),
        lambda: process.times(model, recipe, settings),
        lambda: process.sampling(model, recipe, settings),
        lambda: network.average(patient),
        lambda: network.conditions(patient),
        lambda: network.overfits(patient),
    )
    for done, look in enumerate(looks, 1):
        yield done / len(looks), look()


def serious_first(checks: Sequence[Check]) -> Sequence[Check]:
    """The same checks, each with its serious findings first."""
    return [replace(c, findings=sorted(c.findings, key=lambda f: not f.serious)) for c in checks]


def document(checks: Sequence[Check]) -> dict[str, Any]:
    """Ready for JSON."""
    findings = [finding for check in checks for finding in check.findings]
    return {
        "healthy": not findings,
        "serious": any(finding.serious for finding in findings),
        "checks": [check.document() for check in checks],
    }
