"""`carrara adopt` and `carrara export` as a user runs them, and a diffusion model on an adopted autoencoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers_cases import CASES, diffusers, enlivened, trunk

from carrara.autoencoders.stored import load_autoencoder
from carrara.interop.diffusers.autoencoder import read
from conftest import Here, Trained, recipe_file, small_autoencoder, small_diffusion

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own


def test_adopting_and_exporting_again(here: Here, tmp_path: Path) -> None:
    enlivened(CASES["16 channels"].build()).save_pretrained(tmp_path / "pipeline" / "vae")
    done = here("adopt", "pipeline", "mine", "--size", 64, "--licence", "Apache-2.0")
    assert done.status == 0, done.err
    weights = sum(p.numel() for p in read(tmp_path / "pipeline").module.parameters())
    assert done.out.splitlines() == [
        f"mine: kl, 3 channels of 64 px to 16 of 32 (factor 2), {weights:,} weights",
        "next: carrara train text_ldm DATASET --autoencoder mine --out RUN",
    ]
    mine = load_autoencoder(tmp_path / "mine")
    assert (mine.size, mine.passport["licences"]) == (64, ["Apache-2.0"])

    done = here("export", "mine", "back", "--format", "diffusers")
    assert done.status == 0, done.err
    assert done.out.splitlines() == ["back: the autoencoder, as diffusers reads it"]
    assert here("export", "pipeline", "back2").status == 0, "a folder of diffusers is a model too"
    for name in ("back", "back2"):
        assert read(tmp_path / name).hash == mine.hash
        theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / name, low_cpu_mem_usage=False)
        assert theirs.config.scaling_factor == 1.5305


def test_nothing_is_overwritten(here: Here, tmp_path: Path) -> None:
    CASES["tiny"].build().save_pretrained(tmp_path / "theirs")
    (tmp_path / "mine").mkdir()
    assert here("adopt", "theirs", "mine").status == 0, "an empty folder is free"
    for command in (("adopt", "theirs", "mine"), ("export", "mine", "theirs")):
        assert here(*command).refusal == (f"{command[2]} exists already; name another folder, or remove it")


def test_mistakes(here: Here, tmp_path: Path, trained: Trained) -> None:
    CASES["tiny"].build().save_pretrained(tmp_path / "theirs")
    assert here("adopt", "their", "mine").refusal.startswith(
        "there is nothing at their; did you mean 'theirs'?"
    )
    assert here("adopt", trained.autoencoder / "model", "mine").refusal.endswith(
        "model is a model of Carrara already: give it as it is"
    )
    (tmp_path / "empty").mkdir()
    assert here("adopt", "empty", "mine").refusal == (
        "empty is neither a pipeline nor an autoencoder of diffusers: expected a folder with a model_index.json "
        "or a config.json"
    )
    assert here("export", "theirs", "out", "--format", "difusers").refusal == (
        "'--format': expected 'diffusers', got 'difusers'; did you mean 'diffusers'?"
    )
    assert here("export", "their", "out").refusal.startswith(
        "there is no model at their; did you mean 'theirs'?"
    )
    assert here("adopt", "theirs", "mine", "--size", 30).refusal == (
        "size is 30; this autoencoder needs a multiple of 8"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "theirs"]


def test_the_autoencoder_of_a_diffusion_model(here: Here, tmp_path: Path, trained: Trained) -> None:
    """It has a measured scale, and diffusers decodes its latents to the same picture."""
    refusal = here("export", trained.diffusion, "out").refusal
    assert refusal.startswith(
        "the condition 'caption' (text) cannot be exported: diffusers has no text encoder of this kind"
    )
    alone = refusal.rpartition("carrara export ")[2].removesuffix(" DEST")
    assert not (tmp_path / "out").exists()
    done = here("export", alone, "out")
    assert done.status == 0, done.err
    first, note = done.out.splitlines()
    assert first == "out: the autoencoder, as diffusers reads it"
    assert note.startswith("note: the latent scale is in latents_mean and latents_std")
    ours = load_autoencoder(trained.diffusion / "model")
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False).eval()
    assert ours.scale is not None
    torch.testing.assert_close(torch.tensor(theirs.config.latents_mean), ours.scale.mean)
    torch.testing.assert_close(torch.tensor(theirs.config.latents_std), ours.scale.std)
    latent = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        picture = ours.module.decode(ours.scale.unscale(latent))  # type: ignore[operator]
        wide = [
            torch.tensor(x)[:, None, None] for x in (theirs.config.latents_mean, theirs.config.latents_std)
        ]
        expected = theirs.decode(latent * wide[1] + wide[0]).sample
    assert expected.std() > 0.05
    torch.testing.assert_close(picture, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["kl", "vq", "tiny"])
def test_diffusion_on_latents_of_an_adopted_one(
    here: Here, tmp_path: Path, trained: Trained, name: str
) -> None:
    """Straight from the folder of diffusers, or from the model made of it: the same weights, and pictures."""
    arguments = trunk((32, 32), sample_size=16)
    if name == "tiny":
        theirs = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )  # fmt: skip
    else:
        theirs = (diffusers.AutoencoderKL if name == "kl" else diffusers.VQModel)(
            **arguments, latent_channels=4
        )
    enlivened(theirs).save_pretrained(tmp_path / "theirs")
    assert here("adopt", "theirs", "mine", "--size", 16).status == 0
    recipe = recipe_file(small_diffusion("2steps"), tmp_path / "recipe.toml")
    source = "mine" if name == "tiny" else "theirs"  # the file of a tiny one says no size
    done = here("train", recipe, trained.dataset.path, "--autoencoder", source, "--out", "run")
    assert done.status == 0, done.err
    kept = load_autoencoder(tmp_path / "run" / "model")
    assert kept.hash == load_autoencoder(tmp_path / "mine").hash
    assert kept.scale is not None
    assert kept.scale.std.min() > 0.01
    done = here("sample", "run", "a red disc", "--steps", 2, "--count", 1, "--out", "pictures")
    assert done.status == 0, done.err
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1


@pytest.mark.parametrize("name", ["kl", "vq", "tiny"])
def test_fine_tuning_and_giving_it_back(here: Here, tmp_path: Path, trained: Trained, name: str) -> None:
    """Training starts from the weights that were adopted, changes them, and diffusers reads what came of it."""
    if name == "tiny":
        theirs = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )  # fmt: skip
    else:
        kind = diffusers.AutoencoderKL if name == "kl" else diffusers.VQModel
        theirs = kind(**trunk((32, 32), sample_size=16), latent_channels=4)
    enlivened(theirs).save_pretrained(tmp_path / "theirs")
    plain = small_autoencoder("2steps").model_copy(update={"autoencoder": None})
    recipe = recipe_file(plain, tmp_path / "recipe.toml")
    done = here("train", recipe, trained.dataset.path, "--start", "theirs", "--out", "run")
    assert done.status == 0, done.err
    assert here("export", "run", "back").status == 0
    back = type(theirs).from_pretrained(tmp_path / "back", low_cpu_mem_usage=False)
    moved = {
        key: (value - theirs.state_dict()[key]).abs().max().item() for key, value in back.state_dict().items()
    }
    assert 0 < max(moved.values()) < 0.05, "two small steps away from where it began"
