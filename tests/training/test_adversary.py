"""The discriminator of stage one: it waits, it ramps in, it stays or is undone, and a kill changes nothing of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.autoencoders import vq
from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.model_folder import read_passport
from carrara.training import checkpoint
from carrara.training.checkpoint import TrainingState
from carrara.training.devices import Placement
from carrara.training.discriminator import SNAPSHOT, Adversary, Discriminator
from carrara.training.loop import Report
from carrara.training.metrics_log import read_metrics
from carrara.training.recipe import AutoencoderRecipe, DiscriminatorConfig, TrainConfig
from carrara.training.stages import train_autoencoder
from carrara.training.validation import HeldOutJudge
from conftest import run_out, small_autoencoder, some_steps, steps

SMALL = DiscriminatorConfig(layers=1, channels=8, latest=0.4, ramp=0.2)


def recipe(budget: str = "40steps", **changes: Any) -> AutoencoderRecipe:
    plain = small_autoencoder(budget)
    return plain.model_copy(update={"discriminator": SMALL, **changes})


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A judge that says what the test wants: psnr by share of the budget, distance one after the other."""
    script: dict[str, Any] = {"psnr": lambda fraction: 20 + 10 * fraction, "distances": []}
    monkeypatch.setattr(HeldOutJudge, "psnr", lambda self, state: script["psnr"](state.fraction))
    monkeypatch.setattr(
        HeldOutJudge,
        "distance",
        lambda self, state: script["distances"].pop(0) if script["distances"] else None,
    )
    return script


def notes(reports: list[Report]) -> list[str]:
    """What was said, but for what computes fastest."""
    return [r.note for r in reports if isinstance(r, Report) and r.note and not r.note.startswith("CPU")]


def weights(run: Path) -> bytes:
    return (run / "model" / "weights.safetensors").read_bytes()


def test_it_begins_at_the_latest_and_ramps(
    dataset: Dataset, tmp_path: Path, scripted: dict[str, Any]
) -> None:
    reports = run_out(train_autoencoder(recipe(), dataset, tmp_path / "run"))
    began = [r.step for r in reports if "adversarial" in getattr(r, "losses", ())]
    assert began == list(range(17, 41))  # 40 % of 40 steps lie behind
    assert [r.step for r in reports if "discriminator" in getattr(r, "losses", ())] == began
    assert "begins" in notes(reports)[0]
    assert "stays" in notes(reports)[1]
    lines = [line for line in read_metrics(tmp_path / "run") if "adaptive_weight" in line]
    assert [line["step"] for line in lines] == [20, 30, 40]
    assert all(line["gradient_adversarial"] > 0 and line["gradient_l1"] > 0 for line in lines)
    # At full strength the two gradients differ by the recipe's weight alone.
    terms = ("gradient_l1", "gradient_l2", "gradient_edges")
    strength = lines[-1]["gradient_adversarial"] / sum(lines[-1][t] for t in terms)
    assert 0.1 < strength < SMALL.weight * 1.5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_other_loss_and_the_penalty_train_too(
    dataset: Dataset, tmp_path: Path, scripted: dict[str, Any], precision: str
) -> None:
    other = SMALL.model_copy(update={"loss": "non_saturating", "gradient_penalty": 2.0, "latest": 0.0})
    plain = small_autoencoder("12steps", precision=precision)
    chosen = plain.model_copy(update={"discriminator": other})
    reports = run_out(train_autoencoder(chosen, dataset, tmp_path / "run"))
    last = reports[-2].losses
    assert last["gradient_penalty"] > 0
    assert 0 < last["discriminator"] < 5
    assert last["adversarial"] != 0


def test_it_begins_earlier_where_nothing_is_gained(
    dataset: Dataset, tmp_path: Path, scripted: dict[str, Any]
) -> None:
    scripted["psnr"] = lambda fraction: min(20 + 10 * fraction, 21.5)
    reports = run_out(train_autoencoder(recipe(), dataset, tmp_path / "run"))
    assert (
        next(r.step for r in reports if "adversarial" in getattr(r, "losses", ())) == 9
    )  # 15 % and 20 % looked alike


def test_harm_is_undone_and_training_goes_on_without_it(
    dataset: Dataset, tmp_path: Path, scripted: dict[str, Any]
) -> None:
    scripted["psnr"] = lambda fraction: 25 - 10 * max(0, fraction - 0.5)
    script = recipe(budget="40steps")
    reports: list[Report] = []
    for report in train_autoencoder(script, dataset, tmp_path / "run"):
        reports.append(report)
    with_it = [r.step for r in reports if "adversarial" in getattr(r, "losses", ())]
    assert with_it[0] == 5
    assert with_it[-1] == 26  # a loss of more than 1 dB is seen at 65 %
    assert "undone" in notes(reports)[1]
    assert "fell from 25.00 to 23.50 dB" in notes(reports)[1]
    assert [r.step for r in steps(reports)] == list(range(1, 41))
    words = "the discriminator was undone: held-out PSNR fell from 25.00 to 23.50 dB"
    assert read_passport(tmp_path / "run" / "model")["discriminator"] == words


def test_undoing_brings_back_weights_averages_and_optimizers(
    dataset: Dataset, tmp_path: Path, scripted: dict[str, Any]
) -> None:
    scripted["psnr"] = lambda fraction: 25.0 if fraction < 1 else 3.0
    run_out(train_autoencoder(recipe("40steps"), dataset, tmp_path / "run"))
    snapshot = checkpoint.newest(tmp_path / "run" / SNAPSHOT)
    assert snapshot is not None
    before, _ = checkpoint.load(snapshot)
    kept = checkpoint.load(checkpoint.newest(tmp_path / "run" / "checkpoints"))[0]  # type: ignore[arg-type]
    from safetensors.torch import load_file

    final = load_file(tmp_path / "run" / "model" / "weights.safetensors")
    for name, value in final.items():
        assert torch.equal(value, before[f"average.autoencoder.{name}"]), name
    moved = [name for name in final if not torch.equal(final[name], kept[f"average.autoencoder.{name}"])]
    assert moved, "training went on meanwhile"


@pytest.mark.parametrize(("after", "words"), [(0.8, "stays"), (1.3, "did not improve")])
def test_features_have_to_come_closer(
    dataset: Dataset, tmp_path: Path, scripted: dict[str, Any], after: float, words: str
) -> None:
    scripted["distances"] = [1.0, after]
    reports = run_out(train_autoencoder(recipe(), dataset, tmp_path / "run"))
    assert words in notes(reports)[-1]
    assert f"{after:.3f}" in notes(reports)[-1]


@pytest.mark.parametrize("undone", [False, True])
def test_stopped_anywhere_with_a_discriminator_the_weights_are_the_same(
    dataset: Dataset, tmp_path: Path, scripted: dict[str, Any], undone: bool
) -> None:
    if undone:
        scripted["psnr"] = lambda fraction: 25 - 10 * max(0, fraction - 0.5)
    codes = vq.Config(channels=8, multipliers=(1, 2), blocks=1, middle_attention=False, codes=64)
    chosen = recipe(autoencoder=codes)
    whole = steps(train_autoencoder(chosen, dataset, tmp_path / "whole"))
    for length in (3, 1, 12, 1, 1, 8, 1):  # 40 % and 65 % are among the ends
        part = train_autoencoder(chosen, dataset, tmp_path / "parts")
        some_steps(part, length)
        part.close()  # type: ignore[attr-defined]
    rest = steps(train_autoencoder(chosen, dataset, tmp_path / "parts"))
    assert [r.losses for r in rest] == [r.losses for r in whole[-len(rest) :]]
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_fooling_leaves_the_discriminator_alone_and_weighs_by_gradients() -> None:
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"weight": 0.25})
    game = Adversary(config, Discriminator(3, 1, 8), None, Path())  # type: ignore[arg-type]
    game.factor = 0.5
    last = torch.nn.Parameter(torch.randn(3, 3))
    picture = torch.einsum("ij,bjhw->bihw", last, torch.randn(2, 3, 8, 8))
    reconstruction = (picture - 1).abs().mean()
    term = game.fooling(picture, reconstruction, last)
    (ours,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (theirs,) = torch.autograd.grad(term, last, retain_graph=True)
    torch.testing.assert_close(theirs.norm(), 0.5 * 0.25 * ours.norm(), rtol=0.01, atol=0)
    term.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None and p.requires_grad for p in game.module.parameters())
    sum(game.losses(picture.detach(), picture.detach() * 0.5).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in game.module.parameters())


def test_the_judge_looks_at_averages_and_leaves_no_trace(dataset: Dataset) -> None:
    chosen = small_autoencoder()
    torch.manual_seed(0)
    module = chosen.autoencoder.build()
    state = TrainingState({"autoencoder": module}, TrainConfig(), Placement(torch.device("cpu"), bf16=False))
    judge = HeldOutJudge(chosen, dataset, module, Path())
    plain = judge.psnr(state)

    def everything() -> list[Tensor]:
        return [v.clone() for v in module.state_dict().values()]

    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3)
    before = everything()
    assert judge.psnr(state) == plain
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    assert module.training
    state.averages["autoencoder"].update(module, 1)
    assert judge.psnr(state) != plain


def test_a_picture_too_small_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 24: take fewer layers"):
        AutoencoderRecipe(size=16, autoencoder=vq.Config(), discriminator=DiscriminatorConfig())


def test_too_few_pictures_and_too_many_codes_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.batch is 64, but .* pictures to train on; take --set train"):
        run_out(train_autoencoder(small_autoencoder(batch=64), dataset, tmp_path / "a"))
    many = small_autoencoder().model_copy(
        update={"autoencoder": vq.Config(channels=8, multipliers=(1, 2), codes=2**14)}
    )
    with pytest.raises(UserError, match=r"the codebook has 16384 codes for 1[0-9]{3} vectors in all"):
        run_out(train_autoencoder(many, dataset, tmp_path / "b"))
    assert not list(tmp_path.iterdir())


def test_lpips_looks_at_colours_only(dataset: Dataset, tmp_path: Path) -> None:
    from carrara.training.losses import LossWeights

    many = small_autoencoder().model_copy(
        update={
            "autoencoder": vq.Config(channels=8, multipliers=(1, 2), codes=8, image_channels=2),
            "losses": LossWeights(lpips=1.0),
        }
    )
    with pytest.raises(UserError, match="lpips looks at 1, 3 or 4 channels, these pictures have 2"):
        run_out(train_autoencoder(many, dataset, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_term_that_explodes_is_named(dataset: Dataset, tmp_path: Path) -> None:
    from carrara.training.losses import LossWeights

    wild = small_autoencoder().model_copy(
        update={"losses": LossWeights(l1=1.0).model_copy(update={"l2": 3e38})}
    )
    with pytest.raises(UserError, match=r"l2 is no longer finite at 0 pictures|that of the loss l2 first"):
        run_out(train_autoencoder(wild, dataset, tmp_path / "run"))
