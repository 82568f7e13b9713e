"""A batch in parts gives the gradient of the whole; dropout and gradients do not depend on how they are computed."""

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from toy import Toy, batches, config, state_of

from carrara.autoencoders import kl, vq
from carrara.autoencoders.stored import load_autoencoder
from carrara.denoisers import unet
from carrara.training.devices import blocks
from carrara.training.gradients import parts
from carrara.training.loop import train
from carrara.training.recipe import TrainConfig
from carrara.training.stages import train_autoencoder, train_diffusion
from conftest import Trained, first_step, run_out, small_autoencoder, small_diffusion


def gradients(drop: float = 0.0, **given: Any) -> list[Tensor]:
    """What the optimizer is given at the third step."""
    task = Toy(drop)
    state = state_of(task, config(clip=1e9, **given))
    found: list[Tensor] = []
    step = state.optimizers["m"].step

    def record() -> None:
        found[:] = [p.grad.clone() for p in task.modules["m"].parameters() if p.grad is not None]
        step()

    state.optimizers["m"].step = record  # type: ignore[method-assign,assignment]
    run_out(islice(train(task, batches(0), state), 3))
    assert len(found) == len(list(task.modules["m"].parameters()))
    return found


@pytest.mark.parametrize("count", [2, 8])
def test_parts_have_the_gradient_of_the_whole(count: int) -> None:
    for whole, split in zip(gradients(), gradients(accumulate=count), strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-6, atol=1e-6 * float(whole.abs().max()))
        assert whole.abs().max() > 1e-4


def test_parts_of_a_batch() -> None:
    batch = next(batches(16))
    assert parts(batch, 1) == [batch]
    three = parts(batch, 3)
    assert [len(part.rows) for part in three] == [2, 3, 3]
    assert [part.seen for part in three] == [16, 18, 21]
    assert np.concatenate([part.seeds for part in three]).tolist() == batch.seeds.tolist()
    assert torch.equal(torch.cat([part.columns["x"] for part in three]), batch.columns["x"])  # type: ignore[arg-type,misc]
    assert [word for part in three for word in part.columns["word"]] == batch.columns["word"]
    assert len(parts(batch, 100)) == 8


@pytest.mark.parametrize(
    ("count", "told"), [(3, "take accumulate = 2 or 4"), (64, "take accumulate = 16 or 32")]
)
def test_parts_that_do_not_divide_are_refused(count: int, told: str) -> None:
    with pytest.raises(
        ValidationError, match=f"a batch of 32 does not divide into {count} equal parts; {told}"
    ):
        TrainConfig(batch=32, accumulate=count)


def test_both_stages_train_in_parts(trained: Trained, tmp_path: Any) -> None:
    """The same losses and norms of the gradient: noise, times and captions belong to the pictures."""
    autoencoder = load_autoencoder(trained.autoencoder / "model")

    def first(count: int, precision: str = "fp32") -> Iterator[Any]:
        options: dict[str, Any] = {"accumulate": count, "precision": precision}
        one = train_autoencoder(small_autoencoder(**options), trained.dataset, tmp_path / f"a{count}")
        yield first_step(one)
        two = train_diffusion(
            small_diffusion(**options), trained.dataset, autoencoder, tmp_path / f"d{count}"
        )
        yield first_step(two)

    for whole, split in zip(first(1), first(4), strict=True):
        assert split.losses == pytest.approx(whole.losses, rel=1e-5)
        assert split.gradient == pytest.approx(whole.gradient, rel=1e-4)
        assert split.seen == whole.seen == 4


# --- dropout ---


def test_dropout_belongs_to_the_pictures_seen() -> None:
    torch.manual_seed(1)
    one = gradients(0.5)
    torch.manual_seed(2)
    two = gradients(0.5)
    for a, b, without in zip(one, two, gradients(0.0), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, without)
    assert not torch.equal(one[0], gradients(0.5, seed=1)[0])


def test_without_dropout_the_global_generator_is_left_alone() -> None:
    task = Toy(0.0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run_out(islice(train(task, batches(0), state_of(task, config())), 2))
    assert torch.equal(torch.get_rng_state(), before)


# --- activations computed twice ---


@pytest.mark.parametrize("count", [1, 2])
def test_checkpointed_blocks_have_the_same_gradient_to_the_bit(count: int) -> None:
    plain, twice = gradients(0.3, accumulate=count), gradients(0.3, accumulate=count, checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, twice, strict=True))


def test_blocks_of_every_kind_of_network() -> None:
    """Those that a network names; residual and attention blocks of an autoencoder, never its codebook."""
    shape: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1}
    network = unet.Config(**shape, head_width=8).build(channels=4)
    assert blocks(nn.ModuleDict({"network": network})) == list(network.blocks())
    for module in (kl.Config(**shape).build(), vq.Config(**shape, codes=16).build()):
        names = {id(part): name for name, part in module.named_modules()}
        found = [names[id(part)] for part in blocks(module)]
        assert "encoder.levels.0" in found
        assert "decoder.middle.1" in found
        assert not [name for name in found if "codebook" in name or name.count(".") > 2]


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_checkpointed_stages_end_with_the_same_weights(trained: Trained, tmp_path: Any, stage: str) -> None:
    autoencoder = load_autoencoder(trained.autoencoder / "model")
    written = []
    for choice in (False, True):
        folder = tmp_path / f"{choice}"
        options: dict[str, Any] = {"checkpointing": choice, "precision": "bf16"}
        run_out(
            train_autoencoder(small_autoencoder("3steps", **options), trained.dataset, folder)
            if stage == "autoencoder"
            else train_diffusion(small_diffusion("3steps", **options), trained.dataset, autoencoder, folder)
        )
        written.append(
            (folder / "model" / ("weights" if stage == "autoencoder" else "denoiser"))
            .with_suffix(".safetensors")
            .read_bytes()
        )
    assert written[0] == written[1]


def test_what_cannot_be_compiled_is_said_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from carrara.errors import UserError

    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("\nNo working C++ compiler found in torch._inductor.config.cpp.cxx\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        UserError, match=r"\(No working C\+\+ compiler found .*\): it needs a C\+\+ compiler"
    ) as told:
        state_of(Toy(), config(compile=True))
    assert "\n" not in str(told.value)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_have_the_same_gradient(monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    """With all of the compiler but the last step, which needs a C++ compiler. Copies run their own weights."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: compile_(*a, **{**k, "backend": "aot_eager"}))
    plain, compiled = gradients(0.3), gradients(0.3, compile=True, checkpointing=checkpointing)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    state = state_of(Toy(), config(compile=True))
    assert set(state.modules["m"].state_dict()) == set(Toy().modules["m"].state_dict())
    twin, x = copy.deepcopy(state.modules["m"]), torch.randn(2, 6)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(twin(x), state.modules["m"](x))
