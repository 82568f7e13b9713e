"""The page docs/python.md, run as it stands: from a folder to a picture, stopped in the middle and gone on with."""

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import carrara
from carrara.errors import UserError
from carrara.training.loop import Report
from conftest import Trained, steps

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
SMALL = {  # what makes the page's example one of seconds
    '"train.budget=10m"': '"train.budget=6steps", "size=32", "autoencoder.channels=32", "train.batch=8"',
    '"train.budget=20m"': '"train.budget=6steps", "model.denoiser.channels=64", "train.batch=8"',
}


@pytest.mark.slow
def test_the_page_from_a_folder_to_a_picture(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-folder").symlink_to(pictures)
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[0]
    for shown, small in SMALL.items():
        assert shown in example
        example = example.replace(shown, small)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["pictures"].shape == (1, 3, 32, 32)
    assert names["pictures"].dtype == torch.uint8
    assert names["report"].fraction == 1
    assert list(carrara.train_autoencoder(_stage_one(), "my-data", "runs/ae")) == [], "it is finished"

    straight = carrara.load("runs/ae")
    with closing(carrara.train_autoencoder(_stage_one(), "my-data", "runs/again")) as reports:
        for report in reports:
            if isinstance(report, Report) and report.step == 3:
                break
    later = steps(carrara.train_autoencoder(_stage_one(), "my-data", "runs/again"))
    assert [report.step for report in later] == [4, 5, 6]
    assert carrara.load("runs/again").hash == straight.hash


def _stage_one() -> Any:
    changes = SMALL['"train.budget=10m"'].replace('"', "").split(", ")
    return carrara.recipe("kl_autoencoder", *changes)


def test_wrong_calls_are_one_line(pictures: Path, tmp_path: Path) -> None:
    list(carrara.import_pictures(pictures, tmp_path / "data"))
    with pytest.raises(UserError, match="no recipe is called 'kl_autoencodr'; did you mean 'kl_autoencoder'"):
        carrara.recipe("kl_autoencodr")
    with pytest.raises(UserError, match="expected a recipe of the kind DiffusionRecipe"):
        list(carrara.train_diffusion("kl_autoencoder", tmp_path / "data", None, tmp_path / "run"))
    with pytest.raises(UserError, match="needs an autoencoder"):
        list(carrara.train_diffusion("text_ldm", tmp_path / "data", None, tmp_path / "run"))
    with pytest.raises(UserError):
        carrara.load(tmp_path / "run")
    with pytest.raises(UserError, match="sampler"):
        carrara.generate(carrara.load("starter"), [{"caption": "cat"}], sampler="dimm")
    assert not (tmp_path / "run").exists()


def test_models_of_the_other_kind_are_one_line(trained: Trained, tmp_path: Path) -> None:
    diffusion, autoencoder, out = trained.diffusion, trained.autoencoder, tmp_path / "run"
    for wrong, said in (
        (
            lambda: carrara.train_diffusion("text_ldm", trained.dataset, None, out, start=autoencoder),
            "autoencoder",
        ),
        (
            lambda: carrara.train_diffusion(
                carrara.recipe("text_ldm"), trained.dataset, None, out, start=diffusion
            ),
            "the model is that one",
        ),
        (lambda: [carrara.generate(carrara.load(autoencoder), [{}])], "expected a diffusion model"),
    ):
        with pytest.raises(UserError, match=said) as told:
            list(wrong())
        assert "\n" not in str(told.value)
    assert not out.exists()
