"""A data set, a model and a stopped run that were made before the rooms were rebuilt: opened, sampled, gone on with.

tests/before/folders.tar.xz holds them: 24 pictures, a small autoencoder, a text model (`finished`), the same training
stopped after three of its six steps (`diffusion`), and a picture that the model drew then.
"""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import carrara
from carrara.dataset.dataset import Dataset
from conftest import Here, steps

ARCHIVE = Path(__file__).parents[1] / "before" / "folders.tar.xz"


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **safe)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_draws_what_it_drew(before: Path) -> None:
    drawn = carrara.generate(carrara.load("finished"), [{"caption": "red disc"}], steps=4, seed=3)
    then = torch.from_numpy(np.asarray(Image.open("sample.png")).copy()).permute(2, 0, 1)
    assert (drawn[0].int() - then.int()).abs().max() <= 2  # of other processors
    assert then.float().std() > 10


def test_a_stopped_run_ends_in_the_weights_of_one_that_was_not_stopped(before: Path) -> None:
    made = steps(carrara.train_diffusion("diffusion/recipe.toml", "data", "autoencoder", "diffusion"))
    assert [report.step for report in made] == [4, 5, 6]
    for name in ("denoiser", "conditions"):
        one, other = (load_file(f"{run}/model/{name}.safetensors") for run in ("diffusion", "finished"))
        assert one.keys() == other.keys()
        for key, weights in one.items():
            torch.testing.assert_close(weights, other[key], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_data_set_and_the_reports_open(before: Path, here: Here) -> None:
    opened = Dataset.open("data")
    assert len(opened) == 24
    assert sorted(opened.captions) == ["de", "und"]
    assert len(opened.indices("held_out")) + len(opened.indices("train")) == 24
    for words, status in (
        ("data search data red", 0),
        ("data stats data", 0),
        ("doctor finished data", 1),  # it finds that the training was short
        ("plan text_ldm data --autoencoder autoencoder", 0),
    ):
        assert here(*words.split()).status == status, words
