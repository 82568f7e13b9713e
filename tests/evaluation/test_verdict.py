"""The verdict: every rule fires beyond its bound and only there, names its value, and says what to do."""

import re

import pytest

from carrara.evaluation.verdict import RULES, Rule, judge
from carrara.recipes.catalogue import named as recipe

GOOD = {
    "psnr": 32.0,
    "lpips": 0.04,
    "kernel_distance": 3.0,
    "colour_shift": 0.4,
    "gap": 0.3,
    "dead_channels": 0.0,
    "posterior_noise": 0.01,
    "latent_std_smallest": 0.8,
    "latent_std_largest": 3.0,
    "smoothness": 0.6,
    "codebook_use": 0.9,
}


def test_a_good_autoencoder_is_called_good() -> None:
    assert {rule.figure for rule in RULES} == set(GOOD)
    verdict = judge(GOOD)
    assert verdict.findings == []
    assert verdict.good_enough
    assert str(verdict) == "good enough for diffusion"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.figure} {rule.limit} {rule.bound:g}")
def test_every_rule_fires_beyond_its_bound(rule: Rule) -> None:
    sign = -1 if rule.limit == "at least" else 1
    step = 1.0 if rule.figure == "dead_channels" else 1e-3 * max(rule.bound, 1e-3)
    at, beyond = (judge(GOOD | {rule.figure: rule.bound + sign * by}) for by in (0.0, step))
    assert rule not in [finding.rule for finding in at.findings]
    (finding,) = beyond.findings
    assert finding.rule == rule
    assert beyond.good_enough != rule.grave
    assert ("not good enough" in str(beyond)) == rule.grave
    assert "{" not in finding.words
    assert any(digit.isdecimal() for digit in finding.words)
    assert rule.advice


def test_advice_names_keys_that_recipes_have() -> None:
    named = {key for rule in RULES for key in re.findall(r"\b\w+\.\w+\b", rule.advice)}
    known = {
        f"{section}.{key}"
        for name in ("kl_autoencoder", "vq_autoencoder", "fsq_autoencoder")
        for section, values in recipe(name).model_dump(mode="json").items()
        if isinstance(values, dict)
        for key in values
    }
    assert len(named) >= 6
    assert named <= known


def test_grave_rules_are_asked_before_mild_ones_of_the_same_figure() -> None:
    for figure in {rule.figure for rule in RULES}:
        rules = [rule for rule in RULES if rule.figure == figure]
        assert [rule.grave for rule in rules] == sorted([rule.grave for rule in rules], reverse=True)
        assert len({rule.limit for rule in rules}) == 1
        bounds = [rule.bound for rule in rules]
        assert bounds == sorted(bounds, reverse=rules[0].limit == "at most")


def test_findings_come_gravest_first_and_one_a_figure() -> None:
    verdict = judge(GOOD | {"psnr": 12.0, "colour_shift": 9.0, "posterior_noise": 0.9})
    assert [f.rule.figure for f in verdict.findings] == ["psnr", "posterior_noise", "colour_shift"]
    assert [f.rule.grave for f in verdict.findings] == [True, True, False]


def test_what_was_not_measured_is_not_judged() -> None:
    assert judge({}).good_enough
    assert judge({"psnr": 5.0}).findings[0].words == "pictures come back blurred or wrong: 5.0 dB"
    document = judge({"psnr": 5.0}).document()
    assert document["good_enough"] is False
    assert [rule["figure"] for rule in document["rules"] if rule["broken"]] == ["psnr"]
