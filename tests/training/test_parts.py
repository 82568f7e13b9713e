"""The parts of training by themselves: budget, average of the weights, Muon, the learning rate's shape."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from carrara.autoencoders import kl
from carrara.conditions import text
from carrara.config import component, kinds
from carrara.denoisers import unet
from carrara.training.checkpoint import TrainingState
from carrara.training.devices import Placement
from carrara.training.ema import Ema, power_of
from carrara.training.losses import TERMS
from carrara.training.lr_and_budget import Budget
from carrara.training.optim import Muon, lr_share, orthogonalise, split_parameters
from carrara.training.recipe import TrainConfig


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("90s", Budget(seconds=90)),
        ("10m", Budget(seconds=600)),
        (" 1.5 H ", Budget(seconds=5400)),
        ("2d", Budget(seconds=172800)),
        ("4000steps", Budget(steps=4000)),
        ("1 step", Budget(steps=1)),
    ],
)
def test_a_budget_is_read(written: str, meant: Budget) -> None:
    assert Budget.parse(written) == meant
    assert Budget.parse(str(meant)) == meant


@pytest.mark.parametrize(
    "written", ["", "10", "m", "-3m", "0s", "0steps", "1.5steps", "10 parsecs", "1h30m", "nan m", "١٠x"]
)
def test_a_budget_that_cannot_be_read(written: str) -> None:
    with pytest.raises(ValueError, match=r"expected for example 90s, 10m, 1\.5h, 4000steps or 20epochs"):
        Budget.parse(written)


def test_a_share_of_a_budget() -> None:
    assert Budget.parse("10m").share(0.25) == Budget(seconds=150)
    assert Budget.parse("7steps").share(0.25) == Budget(steps=7)
    assert Budget(seconds=10).fraction(spent=2.5, step=999) == 0.25
    assert Budget(steps=8).fraction(spent=1e9, step=2) == 0.25
    assert Budget(steps=8).fraction(spent=0, step=99) == 1


def state_of(module: nn.Module, **config: object) -> TrainingState:
    return TrainingState({"m": module}, TrainConfig(**config), Placement(torch.device("cpu"), False))  # type: ignore[arg-type]


def test_the_learning_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(budget="100steps", warmup=10, cooldown=0.4)
    shape = [lr_share(config, used=step / 100, step=step) for step in range(100)]
    assert shape[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert shape[10:61] == [1.0] * 51
    assert shape[60:] == pytest.approx([(100 - k) / 40 for k in range(60, 100)])


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2])
def test_the_average_is_the_power_function_s(width: float) -> None:
    """Against the sum written out: weights ((k/n)^(g+1) - ((k-1)/n)^(g+1)), of relative deviation ``width``."""
    gamma, n = power_of(width), 400
    draw = torch.Generator().manual_seed(1)
    history = torch.randn(n, 3, generator=draw, dtype=torch.float64)
    module = nn.Linear(3, 1, bias=False).double()
    ema = Ema(module, width)
    for step in range(1, n + 1):
        with torch.no_grad():
            module.weight.copy_(history[step - 1 : step])
        ema.update(module, step)
    k = torch.arange(1, n + 1, dtype=torch.float64)
    # Each step's own share, and what all later steps leave of it.
    share = torch.ones(n, dtype=torch.float64)
    for index in range(n):
        keep = (1 - 1 / k) ** (gamma + 1)
        share[index] = (1 - keep[index]) * keep[index + 1 :].prod()
    assert share.sum() == pytest.approx(1)
    torch.testing.assert_close(ema.average["weight"][0], share @ history)
    mean = share @ (k / n)
    deviation = (share @ (k / n - mean).square()).sqrt()
    assert deviation == pytest.approx(width, rel=0.02)


def test_the_average_goes_into_a_module() -> None:
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    Ema(a).copy_to(b)
    assert torch.equal(a.weight, b.weight)
    assert a.weight is not b.weight


@pytest.mark.parametrize("shape", [(40, 40), (16, 64), (64, 16), (33, 7)])
def test_orthogonalised_matrices_have_singular_values_about_one(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(shape[0])
    matrices = torch.randn(5, *shape, generator=draw) * torch.tensor([1e-6, 1e-3, 1, 1e3, 1e6])[:, None, None]
    given = torch.linalg.svdvals(matrices / matrices.norm(dim=(-2, -1), keepdim=True))
    result = orthogonalise(matrices).float()
    values = torch.linalg.svdvals(result)
    assert values.max() < 1.3
    assert values[given > 0.02].min() > 0.5
    if shape[0] != shape[1]:  # far from singular
        assert values.min() > 0.5
    # the same directions: U V^T of the given matrices
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    likeness = torch.nn.functional.cosine_similarity((u @ v).flatten(1), result.flatten(1))
    assert likeness.min() > 0.95


class Words:
    """A table with one caption."""

    captions: ClassVar = {"en": "caption_en"}
    names = ("caption_en",)

    def values(self, column: str) -> list[str]:
        return ["a b"]


def modules() -> dict[str, nn.Module]:
    encoder = text.Config(vocabulary=300, width=16, depth=2, heads=2).learn(Words())
    network = unet.Config(channels=8, multipliers=(1, 2), head_width=8).build(
        channels=4, tokens=16, vector=16
    )
    return {
        "autoencoder": kl.Config(channels=8, multipliers=(1, 2)).build(),
        "denoiser": nn.ModuleDict({"network": network, "conditions": nn.ModuleDict({"caption": encoder})}),
    }


@pytest.mark.parametrize("name", ["autoencoder", "denoiser"])
def test_every_parameter_has_one_optimizer(name: str) -> None:
    module = modules()[name]
    hidden, other = split_parameters(module)
    assert len({id(p) for p in (*hidden, *other)}) == len(hidden) + len(other)
    assert {id(p) for p in (*hidden, *other)} == {id(p) for p in module.parameters()}
    names = {id(p): n for n, p in module.named_parameters()}
    assert all(names[id(p)].endswith("weight") and p.ndim in (2, 4) for p in hidden)
    ends = {names[id(p)] for p in other}
    assert {n for n in names.values() if "conv_in" in n or "conv_out" in n or "embedding" in n} <= ends
    assert sum(p.numel() for p in hidden) > 0.5 * sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("kind", kinds("autoencoders"))
def test_the_ends_of_every_autoencoder_are_no_hidden_matrices(kind: str) -> None:
    module = component("autoencoders", kind).Config().build()
    if not list(module.parameters()):
        pytest.skip("nothing to train")
    hidden, _ = split_parameters(module)
    assert len(hidden) > 4
    width = {module.channels, 2 * module.channels, 3}
    assert not [p.shape for p in hidden if p.ndim == 4 and p.shape[2] > 1 and width & set(p.shape[:2])]
    assert not {id(p) for p in module.ends} & {id(p) for p in hidden}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_an_optimizer_s_state_is_saved_and_taken_up(tmp_path: Path, optimizer: str) -> None:
    def step(state: TrainingState, k: int) -> None:
        module, given = state.modules["m"], state.optimizers["m"]
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(k))
        module(x.contiguous(memory_format=torch.channels_last)).square().mean().backward()
        given.step()
        given.zero_grad()

    def fresh() -> TrainingState:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))
        return state_of(net, optimizer=optimizer, lr=1e-2)

    one, two = fresh(), fresh()
    for k in range(6):
        step(one, k)
    for k in range(3):
        step(two, k)
    path = two.save(tmp_path)
    three = fresh()
    three.restore(path)
    for k in range(3, 6):
        step(three, k)
    for a, b, c in zip(
        one.modules["m"].parameters(),
        three.modules["m"].parameters(),
        fresh().modules["m"].parameters(),
        strict=True,
    ):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    before, after = one.optimizers["m"].state_dict(), three.optimizers["m"].state_dict()
    assert before["state"].keys() == after["state"].keys()
    for index, values in before["state"].items():
        assert values.keys() == after["state"][index].keys()
        for key in values:
            torch.testing.assert_close(values[key], after["state"][index][key], rtol=0, atol=0)
            assert values[key].stride() == after["state"][index][key].stride()


def test_muon_moves_a_matrix_as_far_as_adamw_would() -> None:
    """The root mean square of the step is 0.2 lr (Liu et al. 2025); what is no matrix moves by lr."""
    module = nn.Linear(64, 32)
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = Muon(module, lr=0.01)
    module(torch.randn(256, 64)).square().mean().backward()  # enough samples for a gradient of full rank
    optimizer.step()
    weight, bias = (p.detach() - b for p, b in zip(module.parameters(), before, strict=True))
    assert weight.square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.2)
    assert bias.abs() == pytest.approx(torch.full((32,), 0.01), rel=1e-3)


def test_muon_learns() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8))
    optimizer = Muon(module, lr=0.02)
    x = torch.randn(256, 8)
    goal = x.flip(1).sin()
    losses = []
    for _ in range(150):
        loss = (module(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_reconstruction_losses_by_hand() -> None:
    a = torch.zeros(1, 1, 2, 2)
    b = torch.tensor([[[[1.0, 3.0], [1.0, 1.0]]]])
    assert TERMS["l1"](a, b).item() == pytest.approx(1.5)
    assert TERMS["l2"](a, b).item() == pytest.approx(3.0)
    assert TERMS["edges"](a, b).item() == pytest.approx((2 + 0) / 2 + (0 + 2) / 2)
    assert all(term(b, b).item() == 0 for term in TERMS.values())


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    from carrara.errors import UserError

    path = state_of(nn.Linear(3, 2)).save(tmp_path)
    with pytest.raises(UserError, match="does not fit this recipe"):
        state_of(nn.Linear(3, 4)).restore(path)
