"""Validation: it sees the same each time, changes nothing of the training, and stops it when asked to."""

import base64
import json
import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import tiny_encoders
from carrara.conditions import pretrained_text
from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.generation.model import load_model
from carrara.generation.png import read_recipe
from carrara.importing.importing import import_pictures
from carrara.training import checkpoint
from carrara.training.metrics_log import read_metrics
from carrara.training.recipe import BINS, DiffusionRecipe, Pixels, TrainConfig, ValidationConfig
from carrara.training.run_page import run_report, write_report
from carrara.training.stages import train_diffusion
from carrara.training.validation import Validation
from carrara.training.validation_pictures import absent
from conftest import Trained, run_out, small_diffusion, steps, write_pictures


def recipe(looks: int, budget: str = "10steps", **train: Any) -> DiffusionRecipe:
    """In pixels, so that nothing has to be encoded."""
    few = ValidationConfig(looks=looks, pictures=4, samples=3, steps=2)
    plain = small_diffusion(budget, **train)
    return plain.model_copy(update={"validation": few, "pixels": Pixels(size=16, flip=False)})


def weights(run: Path) -> bytes:
    return (run / "model" / "denoiser.safetensors").read_bytes()


@pytest.fixture(scope="module")
def watched(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was looked at five times."""
    run = tmp_path_factory.mktemp("watched") / "run"
    run_out(train_diffusion(recipe(5), dataset, None, run))
    return run


def test_looking_changes_nothing_and_a_resumed_run_sees_the_same(
    watched: Path, dataset: Dataset, tmp_path: Path
) -> None:
    run_out(train_diffusion(recipe(0), dataset, None, tmp_path / "alone"))
    assert weights(tmp_path / "alone") == weights(watched)
    assert not (tmp_path / "alone" / "samples").exists()
    for length in (3, 2):
        part = train_diffusion(recipe(5), dataset, None, tmp_path / "parts")
        for _ in range(length):
            while not steps([next(part)]):
                pass
        part.close()  # type: ignore[attr-defined]
    run_out(train_diffusion(recipe(5), dataset, None, tmp_path / "parts"))
    assert weights(tmp_path / "parts") == weights(watched)
    held_out = [{k: v for k, v in m.items() if "held_out" in k} for m in read_metrics(watched)]
    assert held_out[-1]
    assert held_out == [
        {k: v for k, v in m.items() if "held_out" in k} for m in read_metrics(tmp_path / "parts")
    ]
    grids = sorted((watched / "samples").glob("*.png"))
    assert [int(path.stem) for path in grids] == [8, 16, 24, 32, 40]
    for path in grids:
        assert path.read_bytes() == (tmp_path / "parts" / "samples" / path.name).read_bytes()


def test_what_is_logged(watched: Path) -> None:
    last = read_metrics(watched)[-1]
    for name in ("held_out", "held_out.unconditional"):
        bins = [value for key, value in last.items() if re.fullmatch(rf"{name}\.t\d\.\d\d", key)]
        assert len(bins) == BINS
        assert len(set(bins)) == BINS
        assert last[name] == pytest.approx(sum(bins) / BINS, abs=1e-5)
    asked = read_recipe(next(iter((watched / "samples").glob("*.png"))))["asked"]
    assert len(asked) == 3
    assert all(row["caption"] for row in asked)
    with Image.open(watched / "samples" / "000000000040.png") as image:
        assert image.size == (3 * 68 + 4, 68 + 4)  # enlarged to 64 pixels each


def test_the_page_of_a_run_stands_alone(watched: Path) -> None:
    page = (watched / "report.html").read_text()
    assert "finished" in page
    assert page.count("data:image/png;base64,") == 5
    assert not re.findall(r"(?:src|href)=\"(?!data:)|@import|url\(|https?://", page)
    for words in ("held-out", "with the condition", "Checkpoints", "[train]", "by time t"):
        assert words.lower() in page.lower()
    first = re.findall(r"base64,([A-Za-z0-9+/=]+)", page)[0]
    assert base64.b64decode(first) == (watched / "samples" / "000000000040.png").read_bytes()


def test_each_look_is_logged_once(dataset: Dataset, tmp_path: Path) -> None:
    """The page draws what was measured where it was measured, and its samples have their words."""
    run_out(train_diffusion(recipe(2, "60steps"), dataset, None, tmp_path / "run"))
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "denoising" in line] == [10, 20, 30, 40, 50, 60]
    assert [line["step"] for line in lines if "held_out" in line] == [40, 60]
    page = (tmp_path / "run" / "report.html").read_text()
    asked = read_recipe(next(iter((tmp_path / "run" / "samples").glob("*.png"))))["asked"]
    assert "".join(f"<li>{row['caption']}</li>" for row in asked) in page


def test_a_log_that_repeats_each_look_is_drawn_where_it_was_measured(tmp_path: Path) -> None:
    values = [None, 1.2, 1.2, 1.2, 1.1, 1.1]
    lines = [{"seen": 10 * k} | ({"held_out": v} if v else {}) for k, v in enumerate(values)]
    page = run_report(tmp_path, lines)
    (points,) = re.findall(r'<polyline points="([^"]*)"', page.partition("Held-out")[2])
    assert len(points.split()) == 2


def test_samples_of_own_prompts(dataset: Dataset, tmp_path: Path) -> None:
    chosen = recipe(1, "1steps")
    own = chosen.validation.model_copy(update={"prompts": ("a red disc", "something else")})
    run_out(train_diffusion(chosen.model_copy(update={"validation": own}), dataset, None, tmp_path / "run"))
    (grid,) = (tmp_path / "run" / "samples").glob("*.png")
    assert read_recipe(grid)["asked"] == [{"caption": "a red disc"}, {"caption": "something else"}]
    with Image.open(grid) as image:
        assert image.size == (2 * 68 + 4, 68 + 4)
    assert "<li>something else</li>" in (tmp_path / "run" / "report.html").read_text()


def test_the_page_of_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('task = "diffusion"\n')
    line = {"step": 10, "seen": 40, "denoising": float("nan")}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = write_report(tmp_path).read_text()
    assert "training: 40 pictures seen" in page


class Captured:
    """A validation of a run of one step, for its parts."""

    def __init__(self, data: Dataset, folder: Path, chosen: DiffusionRecipe, monkeypatch: Any) -> None:
        self.validation: Any = None
        before = Validation.__init__

        def keep(this: Validation, *given: Any) -> None:
            before(this, *given)
            self.validation = this

        monkeypatch.setattr(Validation, "__init__", keep)
        run_out(train_diffusion(chosen, data, None, folder / "run"))


def test_conditions_are_there_however_often_training_drops_them(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(1, "1steps")
    often = chosen.model.conditions["caption"].model_copy(update={"dropout": 0.9})
    model = chosen.model.model_copy(update={"conditions": {"caption": often}})
    validation = Captured(
        dataset, tmp_path, chosen.model_copy(update={"model": model}), monkeypatch
    ).validation
    pictures, task = validation._pictures, validation.task
    assert not any(absent(value) for value in pictures.values["caption"])
    one = pictures.losses(task, torch.no_grad, batch=1)
    assert torch.allclose(one, pictures.losses(task, torch.no_grad, batch=64), rtol=1e-5)
    assert one.shape == (BINS,)
    never = {"caption": often.model_copy(update={"dropout": 0.0})}
    assert pictures.free(never) is None
    assert all(absent(value) for value in pictures.free({"caption": often}).values["caption"])


def test_two_conditions_may_read_one_column(dataset: Dataset, tmp_path: Path) -> None:
    """One draws words, the other what was derived of them; each is given its own in the grid of samples."""
    chosen = recipe(1, "1steps")
    frozen = pretrained_text.Config(
        paths=(tiny_encoders.clip_folder(),), length=20, tokens=False, pooled="last"
    )
    both = {"words": chosen.model.conditions["caption"], "frozen": frozen}
    model = chosen.model.model_copy(update={"conditions": both})
    chosen = chosen.model_copy(update={"model": model})
    run_out(train_diffusion(chosen, dataset, None, tmp_path / "run"))
    (grid,) = (tmp_path / "run" / "samples").glob("*.png")
    asked = read_recipe(grid)["asked"]
    assert [list(row) for row in asked] == [["words"]] * 3, "the other's are numbers, not words"


def state(fraction: float, numbers: dict[str, float]) -> Any:
    return SimpleNamespace(
        unlogged=lambda at: True,
        fraction=fraction,
        fraction_at=lambda *, spent, step: step / 100,
        config=TrainConfig(budget="100steps"),
        numbers=numbers,
        spent=0.0,
        step=int(100 * fraction),
        seen=int(400 * fraction),
        averages={"denoiser": None},
    )


def test_patience(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.1])
    config = ValidationConfig(looks=10, patience=2, samples=0)
    fake: Any = SimpleNamespace(modules={"denoiser": torch.nn.Linear(1, 1)})
    validation = Validation(
        config, fake, dataset, SimpleNamespace(config=SimpleNamespace(image_channels=3)), tmp_path
    )  # type: ignore[arg-type]

    def measured(state: Any, count: int) -> Mapping[str, float]:
        return {"held_out": next(losses)}

    monkeypatch.setattr(validation, "_losses", measured)
    average: Any = SimpleNamespace(put_into=lambda module: nullcontext())
    numbers: dict[str, float] = {}
    ended = []
    for fraction in (0.0, 0.1, 0.15, 0.2, 0.3, 0.4):
        now = state(fraction, numbers)
        now.averages["denoiser"] = average
        validation.between(now)
        ended.append(validation.finished(now))
    assert ended[:5] == [""] * 5
    assert "not improved in 2 looks; the best was 2.0000 at 20%" in ended[5]
    assert numbers["validation.best"] == 2.0


def test_a_run_stopped_by_its_patience_leaves_the_best_model(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    monkeypatch.setattr(Validation, "_losses", lambda self, state, count: {"held_out": next(losses)})
    chosen = recipe(5)  # after each second step
    impatient = chosen.validation.model_copy(update={"patience": 2, "samples": 0})
    chosen = chosen.model_copy(update={"validation": impatient})
    reports = run_out(train_diffusion(chosen, dataset, None, tmp_path / "run"))
    assert steps(reports)[-1].seen == 32
    assert "best one, of 16 pictures" in reports[-1].note
    model = load_model(tmp_path / "run" / "model")
    assert (model.passport["seen"], model.passport["steps"]) == (16, 4)
    tensors, _ = checkpoint.load(tmp_path / "run" / "checkpoints" / "best" / "000000000016")
    latest, _ = checkpoint.load(tmp_path / "run" / "checkpoints" / "000000000032")
    for name, weight in model.network.state_dict().items():
        best = tensors.get(key := f"average.denoiser.network.{name}", weight)
        assert torch.equal(weight, best)
        assert key not in latest or weight.ndim < 4 or not torch.equal(weight, latest[key])
    assert any(key.startswith("average.denoiser.network.") for key in tensors)


def test_without_held_out_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path / "shapes")
    run_out(import_pictures(str(tmp_path / "shapes"), tmp_path / "data", held_out=0.0))
    data = Dataset.open(tmp_path / "data")
    reports = run_out(train_diffusion(recipe(1, "1steps"), data, None, tmp_path / "run"))
    assert any("no pictures are held out" in report.note for report in reports)
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 1
    chosen = recipe(3, "3steps")
    impatient = chosen.validation.model_copy(update={"patience": 1})
    with pytest.raises(UserError, match="patience needs held-out pictures"):
        run_out(
            train_diffusion(chosen.model_copy(update={"validation": impatient}), data, None, tmp_path / "no")
        )
    assert not (tmp_path / "no").exists()


def test_patience_that_could_never_end_a_run_is_refused() -> None:
    with pytest.raises(ValueError, match="could never stop it"):
        ValidationConfig(looks=4, patience=4)


def test_latents_are_validated_too(trained: Trained, tmp_path: Path) -> None:
    from carrara.autoencoders.stored import load_autoencoder

    chosen = small_diffusion("1steps").model_copy(
        update={"validation": ValidationConfig(looks=1, pictures=4, samples=2, steps=2)}
    )
    autoencoder = load_autoencoder(trained.autoencoder / "model")
    run_out(train_diffusion(chosen, trained.dataset, autoencoder, tmp_path / "run"))
    (line,) = read_metrics(tmp_path / "run")
    assert 0.5 < line["held_out"] < 4  # near the size of the target: latents are scaled, the network is new
