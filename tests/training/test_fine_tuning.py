"""Training that starts from an autoencoder that exists: its weights, its network, and no silent mismatch."""

from pathlib import Path

import pytest
import torch

from carrara.autoencoders import kl, vq
from carrara.autoencoders.stored import StoredAutoencoder, load_autoencoder
from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.metrics.reconstruction import mean_psnr
from carrara.recipes import finetune_autoencoder
from carrara.training.recipe import AutoencoderRecipe, TrainConfig
from carrara.training.stages import train_autoencoder
from conftest import Command, Trained, first_step, run_out, small_autoencoder


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
    first_step(part)
    part.close()  # type: ignore[attr-defined]
    torch.manual_seed(5)
    other = load_autoencoder(trained.autoencoder / "model")
    from dataclasses import replace

    other = replace(other, hash="0123456789abcdef")
    with pytest.raises(UserError, match="begun with other start"):
        run_out(train_autoencoder(gentle("9steps"), trained.dataset, tmp_path / "run", start=other))


def test_a_run_begun_from_a_start_does_not_go_on_without_it(trained: Trained, tmp_path: Path) -> None:
    start = load_autoencoder(trained.autoencoder / "model")
    same = gentle("9steps").model_copy(update={"autoencoder": start.config})
    part = train_autoencoder(same, trained.dataset, tmp_path / "run", start=start)
    first_step(part)
    part.close()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="begun with other start"):
        run_out(train_autoencoder(same, trained.dataset, tmp_path / "run"))


def test_weights_of_losses_may_change_and_the_command_line_can_change_them(
    carrara: Command, trained: Trained
) -> None:
    common = ["--out", "run", "--set", "train.budget=1steps", "--set", "size=16", "--set", "train.batch=4"]
    done = carrara(
        "train", "finetune_autoencoder", trained.dataset.path, "--start", trained.autoencoder,
        "--set", "autoencoder.kl=0.5", *common,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert load_autoencoder(carrara.folder / "run" / "model").config.kl == 0.5
    wider = carrara(
        "train", "finetune_autoencoder", trained.dataset.path, "--start", trained.autoencoder,
        "--set", "autoencoder.latent_channels=5", *common,
    )  # fmt: skip
    assert "network has latent_channels = 5, the one to start from 4" in wider.refusal


def test_codes_that_exist_may_be_more_than_the_vectors(trained: Trained, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = vq.Config(channels=8, multipliers=(1, 2), blocks=1, codes=2**13)
    start = StoredAutoencoder.of(config.build(), config, 16, {})
    run_out(train_autoencoder(gentle(), trained.dataset, tmp_path / "run", start=start))
    assert load_autoencoder(tmp_path / "run" / "model").config == config


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
