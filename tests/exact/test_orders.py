"""Orders of convergence: what docs/samplers.md says, measured again on fewer steps."""

import importlib.util
from pathlib import Path

import pytest

from carrara.diffusion.schedules import SCHEDULES

_path = Path(__file__).parents[2] / "bench" / "sampler_convergence.py"
_spec = importlib.util.spec_from_file_location("sampler_convergence", _path)
assert _spec is not None
assert _spec.loader is not None
bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench)

ORDERS = {  # with a gentle start
    "ddim (euler)": 1,
    "heun": 2,
    "dpm2": 2,
    "dpmpp_2s (eta 0)": 2,
    "dpmpp_sde (eta 0)": 2,
    "dpmpp_2m": 2,
    "dpmpp_3m (eta 0)": 2,
    "unipc 2": 3,  # the corrector adds one
    "unipc 3": 4,
    "deis 2": 2,
    "deis 3": 3,
    "lms 4": 4,
    "plms": 2,
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("shifted_cosine", "sigmoid", "cosine")]


@pytest.mark.parametrize("name", ["scaled_linear", "flow", "laplace", *SLOW])
def test_order(name: str) -> None:
    found = bench.orders(SCHEDULES[name](), steps=(50, 100), fine=800)
    assert found.keys() == ORDERS.keys()
    for solver, order in ORDERS.items():
        plain, gentle = found[solver]
        assert gentle == pytest.approx(order, abs=0.35), solver
        assert plain > min(order, 2) - 0.35, solver


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "edm"])
def test_order_over_a_wide_range(name: str) -> None:
    """Here the mixture is resolved, and the order seen, only with more steps."""
    found = bench.orders(SCHEDULES[name](), steps=(160, 320), fine=4000)
    for solver, order in ORDERS.items():
        assert found[solver][1] == pytest.approx(order, abs=0.4), solver


@pytest.mark.parametrize(
    ("name", "orders"),
    [
        ("flow", {"heun": 2, "dpmpp_2m": 2, "unipc 2": 3}),
        ("sigmoid", {"heun": 1.5, "dpmpp_2m": 1, "unipc 2": 3}),
        ("laplace", {"heun": 0.6, "dpmpp_2m": 0.46, "unipc 2": 0.8}),
    ],
)
def test_order_from_pure_noise(name: str, orders: dict[str, float]) -> None:
    """What is lost where alpha begins like a square root."""
    found = bench.orders_from_noise(SCHEDULES[name](), steps=(40, 80))
    for solver, order in orders.items():
        assert found[solver] == pytest.approx(order, abs=0.35), solver
