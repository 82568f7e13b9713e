"""The choice by measuring: what is faster wins, it is remembered, and a run keeps it; parts change rounding only."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import Toy, batches, config

from carrara.autoencoders import vq
from carrara.autoencoders.stored import load_autoencoder
from carrara.conditions import text
from carrara.dataset.loader import Loaded
from carrara.generation.model import load_model
from carrara.generation.sample import Settings, generate
from carrara.layers import GroupNorm, attend
from carrara.training import fastest
from carrara.training.autoencoder_task import AutoencoderTask
from carrara.training.devices import Placement
from carrara.training.gradients import gradients
from carrara.training.recipe import AutoencoderRecipe, TrainConfig
from carrara.training.stages import train_autoencoder, train_diffusion
from conftest import Trained, first_step, run_out, small_autoencoder, small_diffusion, steps, variants

CPU = Placement(torch.device("cpu"), False)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine of two cores, as far as the choice goes, on which nothing was measured yet."""
    monkeypatch.setattr(fastest, "processors", lambda: 2)
    monkeypatch.setattr(fastest, "variants", variants)
    monkeypatch.setattr(fastest, "SECONDS", 0.05)
    monkeypatch.setenv("CARRARA_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({(False, 1): 4, (False, 2): 1, (True, 1): 4, (True, 2): 2}, (False, 2)),
        ({(False, 1): 4, (False, 2): 2, (True, 1): 4, (True, 2): 1}, (True, 2)),
        ({(False, 1): 1, (False, 2): 2, (True, 1): 4, (True, 2): 2}, (False, 1)),
        ({(False, 1): 1, (False, 2): 1.05, (True, 1): 4, (True, 2): 2}, (False, 2)),  # no more than noise
    ],
)
def test_the_fastest_way_is_taken_and_remembered(
    two: None,
    seconds: dict[tuple[bool, int], float],
    expected: tuple[bool, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[bool, int]] = []

    def work(way: Placement) -> Callable[[], None]:
        return lambda: calls.append((way.bf16, way.parts))

    def clock(ways: list[Callable[[], Callable[[], object]]], device: torch.device) -> list[float]:
        for way in ways:
            way()()
        return [float(seconds[one]) for one in calls[-len(ways) :]]

    monkeypatch.setattr(fastest, "measured", clock)

    for _ in range(2):
        found, words = fastest.fastest(CPU, work, "shapes", precision="auto", divisible=True)
        assert (found.bf16, found.parts) == expected
        assert replace(found, bf16=False, parts=1) == CPU, "another memory format is no faster"
        assert words.startswith(str(found))
        assert "s in a trial; CPU" in words
        count = len(calls)
    assert set(calls) == set(seconds)
    fastest.fastest(CPU, work, "shapes", precision="auto", divisible=True)
    assert len(calls) == count, "it was measured already"
    fastest.fastest(CPU, work, "other shapes", precision="auto", divisible=True)
    assert len(calls) > count


def test_memory_format_and_kernels_are_tried_of_the_fastest_way(
    two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock(ways: list[Callable[[], Placement]], device: torch.device) -> list[float]:
        return [
            (3.0 - way.bf16)
            * (0.9 if not way.own_kernels else 1.0)
            * (0.99 if not way.channels_last else 1.0)
            for way in (way() for way in ways)
        ]

    monkeypatch.setattr(fastest, "measured", clock)
    found, words = fastest.fastest(CPU, lambda way: way, "x", precision="auto", divisible=False)  # type: ignore[arg-type, return-value]
    assert found == replace(CPU, bf16=True, own_kernels=False), "a hundredth is noise, a tenth is not"
    assert "PyTorch's kernels (1.8 s in a trial; CPU, float32: 3 s)" in words


def test_a_placement_lays_out_what_it_says() -> None:
    conv = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3))
    for last in (False, True, False):
        replace(CPU, channels_last=last).place(conv)
        layout = torch.channels_last if last else torch.contiguous_format
        assert conv[0].weight.is_contiguous(memory_format=layout)
        assert conv(torch.rand(2, 4, 5, 5)).is_contiguous(memory_format=layout)


def test_our_kernels_and_pytorchs_agree() -> None:
    """In bfloat16, where either may be chosen: group normalization (with SiLU) and attention with a mask."""
    torch.manual_seed(0)
    x, mask = (
        torch.randn(2, 32, 6, 6, dtype=torch.bfloat16),
        torch.tensor([[True] * 9, [True] * 5 + [False] * 4]),
    )
    q, k, v = (torch.randn(2, n, 32, dtype=torch.bfloat16) for n in (7, 9, 9))
    norm = GroupNorm(32, 8)
    found = []
    for own in (True, False):
        replace(CPU, own_kernels=own).place(norm)
        found.append((norm(x, silu=True), attend(q, k, v, 4, mask)))
    CPU.place(norm)
    for a, b in zip(*found, strict=True):
        assert a.std() > 0.1
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_what_is_asked_for_is_not_tried(two: None) -> None:
    ways = fastest.candidates(CPU, "fp32", True)
    assert [(way.bf16, way.parts) for way in ways] == [(False, 1), (False, 2)]
    assert fastest.candidates(CPU, "bf16", False) == [replace(CPU, bf16=True)]


def test_a_damaged_memory_is_measured_again(two: None, tmp_path: Path) -> None:
    run = lambda: fastest.fastest(CPU, lambda way: lambda: None, "x", precision="auto", divisible=False)  # noqa: E731
    run()
    file = min((tmp_path / "cache" / "trials").iterdir())
    for text_ in ("", "[1]", '{"a": 1}', "[0.0, -1.0]", "[NaN, 1.0]"):
        file.write_text(text_)
        run()
        assert all(second > 0 for second in json.loads(file.read_text()))


def parts(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fastest, "fastest", lambda base, work, shapes, **k: (replace(base, parts=count), str(count))
    )


def test_parts_at_once_change_rounding_only(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder = load_autoencoder(trained.autoencoder / "model")

    def reports(folder: Path) -> list[Any]:
        one = run_out(train_autoencoder(small_autoencoder(), trained.dataset, folder / "a"))
        two = run_out(train_diffusion(small_diffusion(), trained.dataset, autoencoder, folder / "d"))
        return steps([*one, *two])

    parts(1, monkeypatch)
    whole = reports(tmp_path / "1")
    parts(2, monkeypatch)
    split, again = reports(tmp_path / "2"), reports(tmp_path / "3")
    assert [r.losses for r in split] == [r.losses for r in again], "threads decide nothing"
    for name in ("denoiser", "conditions"):
        files = [tmp_path / k / "d" / "model" / f"{name}.safetensors" for k in "23"]
        assert files[0].read_bytes() == files[1].read_bytes()
    for a, b in zip(whole, split, strict=True):
        assert b.losses == pytest.approx(a.losses, rel=2e-3)
    assert split[0].gradient == pytest.approx(whole[0].gradient, rel=1e-4)


def test_a_run_goes_on_as_it_was_begun(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is fastest by then: the same weights come out."""
    parts(2, monkeypatch)
    run_out(train_autoencoder(small_autoencoder(), trained.dataset, tmp_path / "whole"))
    begun = train_autoencoder(small_autoencoder(), trained.dataset, tmp_path / "run")
    first_step(begun), first_step(begun), begun.close()
    parts(1, monkeypatch)
    run_out(train_autoencoder(small_autoencoder(), trained.dataset, tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["placement"]["parts"] == 2
    one, other = (tmp_path / n / "model" / "weights.safetensors" for n in ("run", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_samples_in_parts_are_the_same_pictures(trained: Trained) -> None:
    model = load_model(trained.diffusion / "model")
    rows = [{"caption": caption} for caption in ("red disc", "blau", "")]
    settings = Settings(steps=3, seed=5)
    whole = generate(model, rows, settings).int()
    assert (generate(replace(model, parts=2), rows, settings).int() - whole).abs().max() <= 1
    alone = generate(replace(model, parts=2), rows[:1], settings).int()  # its two branches are the parts
    assert (alone - whole[:1]).abs().max() <= 1
    assert whole.float().std() > 1
    assert isinstance(model.config.conditions["caption"], text.Config)


@pytest.mark.parametrize(("drop", "expected"), [(0.0, True), (0.5, False)])
def test_layers_that_drop_features_see_a_batch_whole(
    drop: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They draw from one generator for all threads; so such a batch is not tried in parts either."""

    class Divisible(Toy):
        divisible = True  # type: ignore[assignment]

    asked: list[bool] = []
    monkeypatch.setattr(
        fastest, "fastest", lambda base, work, shapes, *, divisible, **more: asked.append(divisible)
    )
    fastest.fastest_training(Divisible(drop), next(batches(0)), CPU, config())
    assert asked == [expected]


def test_a_trial_changes_no_codebook() -> None:
    """Its codes follow the vectors that they meet, and are no buffers."""
    recipe = AutoencoderRecipe(
        size=16,
        autoencoder=vq.Config(channels=8, multipliers=(1,), blocks=1, middle_attention=False, codes=8),
        train=TrainConfig(batch=4, precision="fp32"),
    )
    torch.manual_seed(0)
    module = recipe.network.build().train()
    task = AutoencoderTask(recipe, module, CPU.device, judge=None)  # type: ignore[arg-type]
    image = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    batch = Loaded(np.arange(4), 0, np.arange(4, dtype=np.uint64), {"image": image})
    gradients(task, batch, CPU, recipe.train)  # the codes begin
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with fastest._untouched(task):
        gradients(task, batch, CPU, recipe.train)
        assert not all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
