"""Training that starts from an autoencoder that exists: its weights, its network, and no silent mismatch."""

from pathlib import Path

import pytest
import torch

from carrara.autoencoders import kl
from carrara.autoencoders.stored import load_autoencoder
from carrara.data.table import Dataset
from carrara.errors import UserError
from carrara.evaluation.reconstruction import mean_psnr
from carrara.recipes import finetune_autoencoder
from carrara.training.autoencoding import AutoencoderRecipe
from carrara.training.loop import TrainConfig
from carrara.training.stages import train_autoencoder
from conftest import Trained, run_out, small_autoencoder


def gentle(budget: str = "2steps") -> AutoencoderRecipe:
    train = TrainConfig(budget=budget, batch=4, optimizer="adamw", lr=1e-6)
    return finetune_autoencoder.recipe().model_copy(update={"size": 16, "train": train})


def test_it_begins_where_the_other_ended(trained: Trained, tmp_path: Path) -> None:
    start = load_autoencoder(trained.autoencoder / "model")
    run_out(train_autoencoder(gentle(), trained.dataset, tmp_path / "run", start=start))
    again = load_autoencoder(tmp_path / "run" / "model")
    assert again.config == start.config
    assert again.hash != start.hash
    assert again.passport["start"] == start.hash
    cpu = torch.device("cpu")
    assert mean_psnr(again, trained.dataset, cpu).db == pytest.approx(
        mean_psnr(start, trained.dataset, cpu).db, abs=0.05
    )


def test_another_start_in_the_same_folder_is_refused(trained: Trained, tmp_path: Path) -> None:
    start = load_autoencoder(trained.autoencoder / "model")
    part = train_autoencoder(gentle("9steps"), trained.dataset, tmp_path / "run", start=start)
    next(part)
    part.close()  # type: ignore[attr-defined]
    torch.manual_seed(5)
    other = load_autoencoder(trained.autoencoder / "model")
    from dataclasses import replace

    other = replace(other, hash="0123456789abcdef")
    with pytest.raises(UserError, match="begun with other start"):
        run_out(train_autoencoder(gentle("9steps"), trained.dataset, tmp_path / "run", start=other))


def test_networks_that_do_not_match_are_refused(trained: Trained, dataset: Dataset, tmp_path: Path) -> None:
    start = load_autoencoder(trained.autoencoder / "model")
    wide = small_autoencoder().model_copy(
        update={"autoencoder": kl.Config(**{**start.config.model_dump(), "latent_channels": 8})}
    )
    with pytest.raises(UserError, match="network has latent_channels = 8, the one to start from 4"):
        run_out(train_autoencoder(wide, dataset, tmp_path / "run", start=start))
    with pytest.raises(UserError, match="no network of its own: give the autoencoder"):
        run_out(train_autoencoder(gentle(), dataset, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
