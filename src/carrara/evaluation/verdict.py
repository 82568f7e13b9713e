"""The verdict on an autoencoder: whether it is good enough to train a diffusion model on its latents, and what to
change: one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Rule:
    """A figure by its name in `Inspection.numbers`, its bound, and what to say where it is not kept.

    ``grave``: with it broken, diffusion is not worth starting. Of several rules for a figure the first broken one
    counts. ``{value}`` in the words is the figure.
    """

    figure: str
    limit: Literal["at least", "at most"]
    bound: float
    grave: bool
    finding: str
    advice: str

    def broken(self, value: float) -> bool:
        """Whether a value lies on the wrong side."""
        return value < self.bound if self.limit == "at least" else value > self.bound


# What is named here with a dot are keys of a recipe: `carrara train … --set autoencoder.kl=0.001`.
_LONGER = "train longer (train.budget), or give the latent more numbers: raise autoencoder.latent_channels"
_LESS_KL = "lower autoencoder.kl"
_MORE_KL = "raise autoencoder.kl"
_LPIPS = "set or raise losses.lpips"

RULES: Sequence[Rule] = (
    Rule("psnr", "at least", 21, True, "pictures come back blurred or wrong: {value:.1f} dB", _LONGER),
    Rule("psnr", "at least", 26, False, "fine detail is lost: {value:.1f} dB", _LONGER),
    Rule(
        *("lpips", "at most", 0.25, True),
        finding="people would see the difference at once: LPIPS {value:.2f}",
        advice=f"train longer (train.budget); {_LPIPS}",
    ),
    Rule(
        *("lpips", "at most", 0.12, False),
        finding="people would see a difference: LPIPS {value:.2f}",
        advice=_LPIPS,
    ),
    Rule(
        *("kernel_distance", "at most", 50, False),
        finding="as a set, reconstructions look unlike the originals: kernel distance {value:.0f}",
        advice=f"usually blur: {_LPIPS}, add a discriminator, or train longer (train.budget)",
    ),
    Rule(
        *("colour_shift", "at most", 2, False),
        finding="colours have shifted by {value:.1f} of 255",
        advice="train longer (train.budget), with a longer end at a falling rate (train.cooldown)",
    ),
    Rule(
        *("gap", "at most", 2, False),
        finding="training pictures come back {value:.1f} dB better than held-out ones: it has memorized them",
        advice="more pictures, or a smaller network (autoencoder.channels)",
    ),
    Rule(
        *("dead_channels", "at most", 0, False),
        finding="{value:.0f} of the latent's channels carry nothing",
        advice=f"{_LESS_KL}, or autoencoder.latent_channels by as many",
    ),
    Rule(
        *("posterior_noise", "at most", 0.6, True),
        finding="{value:.0%} of the latent's variance is the posterior's own noise: little of the picture is left",
        advice=_LESS_KL,
    ),
    Rule(
        *("posterior_noise", "at most", 0.25, False),
        finding="{value:.0%} of the latent's variance is the posterior's own noise",
        advice=_LESS_KL,
    ),
    Rule(
        *("latent_std_smallest", "at least", 0.02, False),
        finding="a channel's standard deviation is {value:.3g}: 16-bit latents hold it badly",
        advice=_MORE_KL,
    ),
    Rule(
        *("latent_std_largest", "at most", 30, False),
        finding="a channel's standard deviation is {value:.3g}: nothing holds the latent together",
        advice=_MORE_KL,
    ),
    Rule(
        *("smoothness", "at least", 0.1, False),
        finding="the latent is rough: neighbours correlate by {value:.2f}, so it is hard to learn",
        advice="raise autoencoder.kl where there is one, or lower autoencoder.latent_channels",
    ),
    Rule(
        *("codebook_use", "at least", 0.5, False),
        finding="only {value:.0%} of the codes are in use",
        advice="a smaller codebook (autoencoder.codes, or autoencoder.levels)",
    ),
)


@dataclass(frozen=True)
class Finding:
    """A broken rule with the value that broke it."""

    rule: Rule
    value: float

    @property
    def words(self) -> str:
        """What is the matter."""
        return self.rule.finding.format(value=self.value)


@dataclass(frozen=True)
class Verdict:
    """All findings, grave ones first."""

    findings: Sequence[Finding]

    @property
    def good_enough(self) -> bool:
        """Whether a diffusion model can be trained on it."""
        return not any(finding.rule.grave for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """It and all its rules, ready for JSON."""
        broken = [finding.rule for finding in self.findings]
        rules = [
            {"figure": r.figure, r.limit: r.bound, "grave": r.grave, "broken": r in broken} for r in RULES
        ]
        findings = [
            {"figure": f.rule.figure, "value": f.value, "words": f.words, "advice": f.rule.advice}
            for f in self.findings
        ]
        return {"good_enough": self.good_enough, "words": str(self), "findings": findings, "rules": rules}

    def __str__(self) -> str:
        if not self.good_enough:
            return "not good enough for diffusion yet"
        return "good enough for diffusion" + (", could be better" if self.findings else "")


def judge(numbers: Mapping[str, float]) -> Verdict:
    """The rules applied to the figures that were measured."""
    found: dict[str, Finding] = {}
    for rule in RULES:
        value = numbers.get(rule.figure)
        if value is not None and rule.broken(value):
            found.setdefault(rule.figure, Finding(rule, value))
    return Verdict(sorted(found.values(), key=lambda finding: not finding.rule.grave))
