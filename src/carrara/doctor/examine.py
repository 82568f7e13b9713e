"""A run examined: all looks at it, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from carrara.doctor import latents, network, sampling, training_log
from carrara.doctor.finding import Check
from carrara.doctor.opened_run import Patient
from carrara.generation.sample import Settings
from carrara.training.metrics_log import read_stopped


def examine(patient: Patient, settings: Settings) -> Iterator[tuple[float, Check]]:
    """Each look when it is done, with how much of all is; ``settings`` are those that pictures were sampled with."""
    model, recipe = patient.model, patient.recipe
    looks: Sequence[Callable[[], Check]] = (
        lambda: training_log.losses(patient.lines, recipe.train, read_stopped(patient.folder)),
        lambda: training_log.amount(patient.lines, patient.dataset, bool(model.conditions)),
        lambda: latents.scale(patient),
        lambda: latents.cache(patient),
        lambda: sampling.terminal(model),
        lambda: sampling.times(model, recipe, settings),
        lambda: sampling.sampling(model, recipe, settings),
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
