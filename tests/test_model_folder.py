"""Folders that are whole or not there, and one line where a file is missing, newer or damaged."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import carrara
from carrara.autoencoders.stored import StoredAutoencoder, load_autoencoder
from carrara.errors import UserError
from carrara.generation.model import Model, load_model
from carrara.model_folder import FORMAT, hash_weights, load_into, read_about, write_folder, write_weights
from conftest import Trained


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    place = tmp_path / "m"
    write_folder(place, lambda part: (part / "a").write_text("one") and None)
    write_folder(place, lambda part: (part / "b").write_text("two") and None)
    assert [p.name for p in place.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_weights_may_be_read_by_whom_other_files_may(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_weights(tmp_path / "a.safetensors", {"x": torch.ones(2)})
        (tmp_path / "other").touch()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(["a.safetensors", "other"], modes["other"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("x")])
def test_a_folder_that_fails_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    place = tmp_path / "m"
    write_folder(place, lambda part: (part / "a").write_text("one") and None)

    def fail(part: Path) -> None:
        (part / "b").write_text("two")
        raise error

    with pytest.raises((KeyboardInterrupt, ValueError)):
        write_folder(place, fail)
    assert (place / "a").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file/m: Not a directory"):
        write_folder(tmp_path / "file" / "m", lambda part: None)


def test_leftovers_of_a_kill_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "m.part").mkdir()
    (tmp_path / "m.part" / "half").write_text("x")
    write_folder(tmp_path / "m", lambda part: (part / "a").write_text("one") and None)
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_weights_keep_their_bits(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4).t(),
        "b": torch.tensor(3),
        "c": torch.randn(2, 3, 4, 4).to(torch.bfloat16),
    }
    tensors["d"] = tensors["c"].contiguous(memory_format=torch.channels_last)
    write_weights(tmp_path / "w.safetensors", tensors)
    from carrara.model_folder import read_weights

    again = read_weights(tmp_path / "w.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[k], tensors[k]) and again[k].dtype == tensors[k].dtype for k in tensors)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    for tensors, message in (
        ({"weight": torch.zeros(2, 3)}, r"bias is nothing, expected \(2,\)"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"weight is \(2, 4\), expected \(2, 3\)"),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "x": torch.zeros(1)},
            r"x is \(1,\), expected nothing",
        ),
    ):
        write_weights(file, tensors)
        with pytest.raises(UserError, match=message):
            load_into(nn.Linear(3, 2), file)


def test_the_hash_changes_with_any_weight() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    seen = {hash_weights(module)}
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        seen.add(hash_weights(module))
    assert len(seen) == 5
    assert hash_weights(module) in seen


# --- every kind of folder, opened and damaged ---


@pytest.fixture
def model(trained: Trained, tmp_path: Path) -> Path:
    """A copy of a diffusion model's folder, to be damaged."""
    return Path(shutil.copytree(trained.diffusion / "model", tmp_path / "model"))


def test_every_folder_opens_by_its_path_alone(trained: Trained) -> None:
    autoencoder = carrara.load(trained.autoencoder / "model")
    assert isinstance(autoencoder, StoredAutoencoder)
    assert autoencoder.size == 16
    model = carrara.load(str(trained.diffusion / "model"))
    assert isinstance(model, Model)
    assert model.latent_shape == (4, 8, 8)
    inner = carrara.load(trained.diffusion / "model" / "autoencoder")
    assert isinstance(inner, StoredAutoencoder)
    assert inner.hash == autoencoder.hash
    assert inner.scale is not None
    assert load_autoencoder(trained.diffusion / "model").hash == inner.hash
    assert not any(m.training for m in (model.network, model.conditions, inner.module))


def test_a_model_says_where_it_comes_from(trained: Trained) -> None:
    passport = load_model(trained.diffusion / "model").passport
    assert passport["licences"] == ["CC0-1.0"]
    assert passport["languages"] == ["de", "und"]
    assert passport["data"] == trained.dataset.fingerprint()
    assert (passport["steps"], passport["seen"]) == (30, 120)
    assert passport["columns"] == {"caption": ["caption_de", "caption"]}
    assert (trained.diffusion / "model" / "recipe.toml").read_text() == (
        trained.diffusion / "recipe.toml"
    ).read_text()


def test_no_file_is_a_pickle(trained: Trained) -> None:
    names = {p.suffix for p in trained.diffusion.rglob("*") if p.is_file() and "events" not in p.parts}
    assert names == {".safetensors", ".toml", ".json", ".jsonl", ".html", ".png"}


NEEDED = [
    "model.toml",
    "denoiser.safetensors",
    "conditions.safetensors",
    "condition_caption/tokenizer.json",
    "autoencoder/model.toml",
    "autoencoder/weights.safetensors",
]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as told:
        carrara.load(path)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    assert Path(name).name in refusal(model)


@pytest.mark.parametrize("name", [*NEEDED, "passport.json"])
@pytest.mark.parametrize("damage", ["empty", "cut", "noise"])
def test_a_damaged_file_is_named(model: Path, name: str, damage: str) -> None:
    file = model / name
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "noise": b"\x93\x00\xff" * 99}[damage])
    text = refusal(model)
    assert Path(name).name in text or "format None" in text or str(model) in text


EDITS = [
    ("model.toml", f"format = {FORMAT}", "format = 99", "model format 99, made by Carrara"),
    ("autoencoder/model.toml", f"format = {FORMAT}", "format = 99", "update it"),
    ("model.toml", 'kind = "diffusion"', 'kind = "oracle"', "oracle"),
    ("model.toml", 'kind = "unet"', 'kind = "hyper"', "unknown kind 'hyper'"),
    ("model.toml", "channels = 8", "channels = 16", "does not fit its model.toml"),
    ("model.toml", "channels = 8", "chanels = 8", "did you mean 'model.denoiser.channels'?"),
    ("model.toml", 'schedule = "flow"', 'schedule = "flw"', "did you mean 'flow'?"),
    ("model.toml", f"format = {FORMAT}", 'format = "1"', "is damaged: 'format' is '1', expected 1"),
    (
        "model.toml",
        "multipliers = [\n    1,\n    2,\n]",
        "multipliers = 3",
        "multipliers': expected a list, got 3",
    ),
    ("autoencoder/model.toml", "std = [", "std = [0.0,", "'std.0': expected more than 0, got 0.0"),
    ("autoencoder/model.toml", "mean = [", "mean = [0.0,", "expected mean and std of 4 channels"),
    ("autoencoder/model.toml", "size = 16", "size = -8", "'size': expected at least 1, got -8"),
    (
        "passport.json",
        '"licences": [',
        '"licences": 5, "x": [',
        "passport.json licences: expected a list, got 5",
    ),
    ("passport.json", "{", '{"ranges": [1], ', "passport.json ranges: expected a table, got [1]"),
    ("passport.json", "{", "[{", "passport.json: expected a table"),
    (
        "condition_caption/tokenizer.json",
        '"version"',
        '"versiom"',
        "its bytes are not those that were written",
    ),
    ("hashes.json", "{", "[", "hashes.json is damaged"),
]


@pytest.mark.parametrize(("name", "old", "new", "message"), EDITS)
def test_an_about_file_that_is_newer_or_wrong(
    model: Path, name: str, old: str, new: str, message: str
) -> None:
    text = (model / name).read_text()
    assert old in text
    (model / name).write_text(text.replace(old, new, 1))
    assert message in refusal(model)


def test_a_list_in_place_of_a_table(model: Path) -> None:
    for value in ("[1]", "3", "{ denoiser = [1] }", '{ denoiser = { kind = ["unet"] } }'):
        (model / "model.toml").write_text(f'format = 1\nkind = "diffusion"\nmodel = {value}\n')
        assert "expected a table" in (text := refusal(model)) or "unknown kind" in text


def test_paths_that_are_no_model(trained: Trained, tmp_path: Path) -> None:
    assert "there is no model at" in refusal(tmp_path / "nowhere")
    assert carrara.load(trained.diffusion).hash == carrara.load(trained.diffusion / "model").hash
    with pytest.raises(UserError, match="did you mean"):
        load_model(trained.diffusion)  # the run, not the model inside
    assert "did you mean 'diffusion'?" in refusal(trained.diffusion.parent / "difusion")
    with pytest.raises(UserError, match="expected a diffusion model"):
        load_model(trained.autoencoder / "model")
    (tmp_path / "file").write_text("x")
    assert "file" in refusal(tmp_path / "file")
    assert read_about(trained.autoencoder / "model")["kind"] == "autoencoder"
    json.loads((trained.autoencoder / "model" / "passport.json").read_text())


def test_attention_at_no_level_opens_as_it_was_meant(tmp_path: Path) -> None:
    """Earlier versions let it name no level; the middle attended all the same."""
    from carrara.autoencoders import identity
    from carrara.autoencoders.scale import LatentScale
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.denoisers import unet
    from carrara.generation.model import Model, ModelConfig, build_network

    chosen = unet.Config(
        channels=8, multipliers=(1,), blocks=1, attention=(), middle_attention=True, head_width=8
    )
    config = ModelConfig(denoiser=chosen)
    autoencoder = StoredAutoencoder.of(identity.Config().build(), identity.Config(), 8, {})
    autoencoder = autoencoder.with_scale(LatentScale(torch.zeros(3), torch.ones(3)))
    network = build_network(config, torch.nn.ModuleDict(), 3)
    Model(config, network, torch.nn.ModuleDict(), autoencoder, {}).save(tmp_path / "m")
    about = (tmp_path / "m" / "model.toml").read_text()
    assert "attention = []" in about
    earlier = about.replace("middle_attention = true\n", "").replace("\nattention = []", "\nattention = [16]")
    (tmp_path / "m" / "model.toml").write_text(earlier)
    again = carrara.load(tmp_path / "m")
    assert isinstance(again, Model)
    assert again.config == config
