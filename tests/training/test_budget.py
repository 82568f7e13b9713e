"""What a budget says, and that epochs are the steps which they take."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from carrara.dataset.dataset import Dataset
from carrara.training.lr_and_budget import Budget
from carrara.training.stages import train_autoencoder
from conftest import Here, Trained, recipe_file, run_out, small_autoencoder, steps


@pytest.mark.parametrize(
    ("text", "budget", "written"),
    [
        ("20epochs", Budget(epochs=20), "20epochs"),
        (" 1 Epoch ", Budget(epochs=1), "1epochs"),
        ("0.5epochs", Budget(epochs=0.5), "0.5epochs"),
        ("3step", Budget(steps=3), "3steps"),
        ("90s", Budget(seconds=90), "1.5m"),
        ("2d", Budget(seconds=172800), "2880m"),
    ],
)
def test_it_is_read_and_written(text: str, budget: Budget, written: str) -> None:
    assert Budget.parse(text) == budget == Budget.parse(written)
    assert str(budget) == written


@pytest.mark.parametrize(
    "text", ["0epochs", "-1epochs", "epochs", "1e3epochs", "1.5steps", "٣epochs", "9999999999epochs"]
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected (for example 90s, .* or 20epochs|at most 1e\+09)"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("epochs", "pictures", "batch", "count"),
    [(20, 1000, 32, 625), (1, 10, 4, 3), (0.1, 30, 3, 1), (0.01, 10, 4, 1), (3, 2, 8, 1), (7, 3, 1, 21)],
)
def test_epochs_as_steps(epochs: float, pictures: int, batch: int, count: int) -> None:
    assert Budget(epochs=epochs).counted(pictures, batch) == Budget(steps=count)
    assert Budget(seconds=5).counted(pictures, batch) == Budget(seconds=5)


def test_a_training_of_epochs_is_that_of_its_steps(dataset: Dataset, tmp_path: Path) -> None:
    """To the bit, also where it is prolonged; and it says what it was given."""
    pictures = len(dataset.indices("train"))
    each = -(-pictures // 4)
    made = steps(train_autoencoder(small_autoencoder("0.5epochs"), dataset, tmp_path / "run"))
    assert made[-1].step == -(-pictures // 8)
    assert made[-1].fraction == 1
    longer = run_out(train_autoencoder(small_autoencoder("1epochs"), dataset, tmp_path / "run"))
    said = "the budget is now 1epochs instead of 0.5epochs: going on from "
    assert any(report.note.startswith(said) for report in longer)
    assert 'budget = "1epochs"' in (tmp_path / "run" / "recipe.toml").read_text()
    assert run_out(train_autoencoder(small_autoencoder(f"{each}steps"), dataset, tmp_path / "run")) == []
    run_out(train_autoencoder(small_autoencoder(f"{each}steps"), dataset, tmp_path / "steps"))
    one, two = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("run", "steps"))
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_a_plan_counts_them(here: Here, trained: Trained, tmp_path: Path) -> None:
    recipe = recipe_file(small_autoencoder(), tmp_path / "recipe.toml")
    pictures = len(trained.dataset.indices("train"))
    plan = ("plan", recipe, trained.dataset.path, "--seconds", 0, "--budget", "50epochs")
    seen = -(-50 * pictures // 4) * 4
    assert f"{seen} pictures, {seen / pictures:.3g} times each of {pictures}" in here(*plan).out.replace(
        " 0", "0"
    )
    refusal = here("plan", "kl_autoencoder", "--budget", "2epochs", "--seconds", 0).refusal
    assert refusal == "a budget in epochs needs a data set, whose pictures they count; give one, or steps"
