"""All that sampling can do, from `carrara sample` and `carrara.generate`: options by name, pictures, holes."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import carrara
from carrara.autoencoders import kl
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.conditions import image, label
from carrara.denoisers import unet
from carrara.diffusion.grids import GRIDS
from carrara.diffusion.guidance import GUIDANCES
from carrara.diffusion.samplers import SAMPLERS
from carrara.errors import UserError
from carrara.generation.editing import Original, encoded_originals
from carrara.generation.model import Model, ModelConfig, Sampling, build_network, latent_of
from carrara.generation.png import parameters, picture_recipe, read_recipe
from carrara.generation.sample import Settings, denoise, settings_for
from carrara.registry import Table
from carrara.tensors import from_pixels
from carrara.training.recipe import Pixels
from conftest import Here

ROWS = [{"label": "a"}, {"label": "b"}]


def small(seed: int = 0, *, channels: int = 3, bits: int = 8, **conditions: Any) -> Model:
    """A model of pictures of 8 x 8 pixels that learned nothing; its parts are far enough from zero to matter."""
    torch.manual_seed(seed)
    config = ModelConfig(
        denoiser=unet.Config(channels=8, multipliers=(1,), blocks=1, attention=()),
        conditions={"label": label.Config(width=8), **conditions},
    )
    stored = replace(Pixels(size=8, channels=channels).autoencoder(), bits=bits)
    encoders: dict[str, nn.Module] = {"label": label.LabelEncoder(label.Config(width=8), ["a", "b"])}
    encoders |= {name: c.restore(Path("nowhere"), latent_of(stored)) for name, c in conditions.items()}
    parts = nn.ModuleDict(encoders)
    network = build_network(config, parts, channels)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return Model(config, network.eval(), parts.eval(), stored, {})


@pytest.fixture(scope="module")
def model() -> Model:
    return small()


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reach") / "model"
    model.save(path)
    return path


def made(model: Model, rows: list[dict[str, Any]] = ROWS, **settings: Any) -> Tensor:
    return carrara.generate(model, rows, **{"steps": 8, "seed": 3, "grid": "uniform", **settings}).int()


def picture(channels: int = 3, side: int = 8, *, deep: bool = False) -> Tensor:
    values = np.random.default_rng(1).integers(0, 65536 if deep else 256, (channels, side, side))
    return torch.from_numpy(values.astype(np.uint16 if deep else np.uint8))


# --- options by name ---

BASE = {
    "repaint": "jump=3,resamples=3",
    "autoguidance": "3,weak=weak",
    "dynamic_threshold": "3,least=0.1",
}


def another(value: Any) -> Any:
    """A value that an option may have, besides its own."""
    if isinstance(value, float):
        return 0.02 if value == float("inf") else value / 2 + 0.3
    return max(1, value // 5) if value > 1 else 2


def options(table: Table[Any]) -> list[tuple[str, str]]:
    numbers = (int, float)
    return [
        (name, f"{key}={another(option.default)}")
        for name in table
        for key, option in table.options(name).items()
        if isinstance(option.default, numbers) and key != "scale"
    ]


def text(name: str, *more: str) -> str:
    keys = {one.partition("=")[0] for one in more}
    base = [
        part
        for part in BASE.get(name, "3" if name in GUIDANCES else "").split(",")
        if part and part.partition("=")[0] not in keys
    ]
    return ":".join(filter(None, [name, ",".join([*base, *more])]))


def test_every_function_has_its_options_here() -> None:
    """Whatever else a sampler or a guidance takes is given by the house."""
    own = {"denoise", "z", "times", "schedule", "noise", "parameterization", "opened", "weak", "scale"}
    for table in (SAMPLERS, GUIDANCES):
        listed = {(name, option.partition("=")[0]) for name, option in options(table)}
        taken = {(name, key) for name in table for key in inspect.signature(table[name]).parameters}
        assert {(name, key) for name, key in taken - listed if key not in own} == set()


@pytest.mark.parametrize(("name", "option"), options(SAMPLERS))
def test_every_option_of_every_sampler(model: Model, name: str, option: str) -> None:
    first, second = (made(model, sampler=text(name, *more)) for more in ((), (option,)))
    assert (first - second).abs().max() > 0
    assert first.float().std() > 10


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_fills_holes_and_starts_from_pictures(model: Model, name: str) -> None:
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    filled = made(model, sampler=text(name), start=picture(), mask=mask)
    assert torch.equal(filled[..., :4], picture()[None, :, :, :4].expand_as(filled[..., :4]).int())
    nearly = made(model, sampler=text(name), start=picture(), strength=1e-4)
    assert (nearly - picture().int()).abs().max() <= 1
    assert (filled[0] - filled[1]).abs().max() > 1


@pytest.mark.parametrize("name", GUIDANCES)
def test_every_guidance(model: Model, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    if name == "autoguidance" and not Path("weak").exists():
        earlier = replace(small(5), autoencoder=model.autoencoder)
        earlier.save(Path("weak"))
    changed = made(model, guidance=text(name))
    assert (changed - made(model, guidance=1)).abs().max() > 1
    assert torch.equal(changed, made(model, guidance=text(name)))
    alone = made(model, ROWS[:1], guidance=text(name))
    assert (alone[0] - changed[0]).abs().max() <= 1
    if name == "cfg":
        assert torch.equal(changed, made(model, guidance=3.0))


@pytest.mark.parametrize(("name", "option"), options(GUIDANCES))
def test_every_option_of_every_guidance(model: Model, name: str, option: str) -> None:
    first, second = (made(model, guidance=text(name, *more)) for more in ((), (option,)))
    assert (first - second).abs().max() > 0


def test_guidances_one_after_the_other(model: Model) -> None:
    both = made(model, guidance="apg:3+interval:low=0.4")
    assert (both - made(model, guidance="apg:3")).abs().max() > 0
    assert (both - made(model, guidance="interval:3,0.4")).abs().max() > 0


def test_what_settings_keep_is_read_again_and_what_was_kept_before_too(model: Model) -> None:
    chosen = settings_for(
        model, {"sampler": "ddim:0.5", "grid": "karras:rho=5", "guidance": "apg:4,limit=2+rescale"}
    )
    assert (chosen.sampler, chosen.sampler_options) == ("ddim", {"eta": 0.5})
    assert (chosen.grid, chosen.grid_options) == ("karras", {"rho": 5.0})
    assert (chosen.guidance, chosen.guidance_rules) == (4.0, "apg:limit=2.0+rescale")
    recipe = picture_recipe("0" * 16, chosen, {}, 0)
    fields = {key: value for key, value in recipe.items() if key in Settings.model_fields}
    assert settings_for(model, fields) == chosen
    assert "CFG scale: 4, " in parameters(recipe, (8, 8), "m")
    old = {"steps": 5, "sampler": "ddim", "sampler_options": {"eta": 1}, "guidance": 7.5}
    assert Sampling(**old).model_dump(exclude_none=True) == {"grid": "shifted", **old}
    assert "guidance_rules" not in picture_recipe("", Settings(), {}, 0), "old pictures keep their names"


@pytest.mark.parametrize(
    ("guidance", "compares"),
    [(1, False), (2, True), ("apg:1", False), ("rescale:2", True), ("autoguidance:2,weak=x", False),
     ("interval:3,0.4,0.5", True), ("autoguidance:2,weak=x+cfg:2", True)],
)  # fmt: skip
def test_whether_a_negative_prompt_counts(guidance: Any, compares: bool) -> None:
    assert Settings(guidance=guidance).compares is compares


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sampler": "dimm:eta=1"}, "no sampler is called 'dimm'; did you mean 'ddim'?"),
        ({"sampler": "ddim:etta=1"}, "sampler 'ddim' has no option 'etta'; did you mean 'eta'?"),
        ({"sampler": "heun:eta=1"}, "sampler 'heun' has no option 'eta'"),
        ({"sampler": "unipc:order=2.5"}, "order is '2.5'; expected a whole number"),
        ({"sampler": "unipc:order=9"}, "order must be from 1 to 3, got 9"),
        ({"sampler": "ddim:eta=-1"}, "eta must be 0"),
        ({"sampler": "repaint:jump=0"}, "jump and resamples of 1 or more"),
        ({"sampler": "ddim", "sampler_options": {"etta": 1}}, "has no option 'etta'; did you mean 'eta'?"),
        ({"grid": "karas:rho=5"}, "no time grid is called 'karas'; did you mean 'karras'?"),
        ({"grid": "karras:steps=5"}, "time grid 'karras' has no option 'steps'"),
        ({"grid": "karras:rho=-1"}, "rho must be greater than 0"),
        ({"guidance": "agp:4"}, "no guidance is called 'agp'; did you mean 'apg'?"),
        ({"guidance": "interval:4,0.8,0.2"}, "0 <= low <= high <= 1"),
        ({"guidance": "rescale:4,amount=2"}, "amount must be from 0 to 1"),
        ({"guidance": "apg:-1"}, "guidance"),
        ({"guidance": "autoguidance:2,weak=nowhere"}, "nowhere"),
        ({"strength": 0.5}, "give the picture to start from too"),
        ({"strength": 0.0, "start": picture()}, "'strength': expected more than 0"),
        ({"strength": 1.5, "start": picture()}, "'strength': expected at most 1"),
        ({"mask": torch.ones(8, 8)}, "a mask says what to fill of a picture"),
        ({"start": picture(1)}, "the picture to start from is uint8 [1, 8, 8]; expected uint8 or uint16 [3 h w]"),
        ({"start": picture().float()}, "is float32 [3, 8, 8]"),
        ({"start": "a.png"}, "is a str"),
        ({"start": picture()[None].expand(3, -1, -1, -1)}, "2 rows need a start, or a mask, for all or one each"),
        ({"start": picture(), "mask": torch.ones(4, 8)}, "the mask is float32 [4, 8], its picture uint8 [3, 8, 8]"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(model: Model, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        made(model, **given)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_that_draws_otherwise_cannot_guide(model: Model, tmp_path: Path) -> None:
    small(2, channels=1).save(tmp_path / "grey")
    with pytest.raises(UserError, match="cannot guide this model: its autoencoder"):
        made(model, guidance=f"autoguidance:2,weak={tmp_path / 'grey'}")


# --- from a picture ---


def test_strength_goes_from_the_picture_to_a_new_one(model: Model) -> None:
    plain = made(model)
    assert torch.equal(made(model, start=picture(), strength=1), plain)
    away = [
        float((made(model, start=picture(), strength=s) - picture().int()).abs().float().mean())
        for s in (0.001, 0.2, 0.6)
    ]
    assert away == sorted(away)
    assert away[0] < 1 < away[1]
    assert torch.equal(made(model, start=picture()), made(model, start=picture(), strength=0.5))
    assert (made(model, start=picture()) - made(model, start=picture(), seed=4)).abs().max() > 1


def test_a_picture_from_a_picture_knows_no_batch(model: Model) -> None:
    starts = torch.stack([picture(), picture().flip(-1)])
    both = made(model, start=starts)
    assert (made(model, ROWS[:1], start=starts[0])[0] - both[0]).abs().max() <= 1
    assert (both[1] - both[0]).abs().max() > 1
    assert not torch.equal(both[1], made(model, start=starts[0])[1])


@pytest.mark.parametrize(("channels", "bits"), [(1, 16), (5, 8)])
def test_any_channels_depth_and_size(channels: int, bits: int) -> None:
    other = small(channels=channels, bits=bits)
    mask = torch.zeros(20, 20)
    mask[:10] = 255
    out = carrara.generate(other, ROWS, steps=2, width=12, height=16, start=picture(channels, 20, deep=bits == 16),
                           mask=mask)  # fmt: skip
    assert out.shape == (2, channels, 16, 12)
    assert out.dtype == (torch.uint16 if bits == 16 else torch.uint8)
    assert torch.equal(out[0][:, 8:], out[1][:, 8:])
    assert not torch.equal(out[0][:, :8], out[1][:, :8])


def test_outside_the_hole_the_latent_stays() -> None:
    """Also before the given pixels are put back: the picture there is what the autoencoder makes of the original."""
    torch.manual_seed(0)
    config = kl.Config(channels=8, multipliers=(1, 2), blocks=1, middle_attention=False)
    scale = LatentScale(torch.full((4,), 0.1), torch.full((4,), 0.7))
    stored = StoredAutoencoder.of(config.build(), config, 16, {}).with_scale(scale)
    base = small(channels=4)
    model = replace(base, autoencoder=stored)
    mask = torch.zeros(16, 16)
    mask[:6, :7] = 1
    given = [Original(picture(side=16), mask)]
    *_, last = denoise(model, ROWS[:1], [0], settings_for(model, {"steps": 3}), given)
    known, hole = encoded_originals(model, given, (16, 16))
    assert hole[0, 0].nonzero().tolist() == [[y, x] for y in range(3) for x in range(4)]
    kept = (hole == 0).expand_as(known)
    torch.testing.assert_close(last.z[kept], known[kept])
    own = scale.scale(stored.module.encode(from_pixels(picture(side=16))[None]).mode())  # type: ignore[operator]
    torch.testing.assert_close(known, own)
    assert (last.z - known)[~kept].abs().mean() > 0.05


# --- the command ---


def test_from_a_picture_by_command(folder: Path, here: Here, tmp_path: Path) -> None:
    Image.fromarray(picture(side=16).permute(1, 2, 0).numpy()).save("p.png")
    Image.fromarray(np.pad(np.full((16, 8), 255, np.uint8), ((0, 0), (0, 8)))).save("m.png")
    given = ("sample", folder, "--label", "a", "--count", 1, "--steps", 2)
    done = here(*given, "--from", "p.png", "--mask", "m.png", "--size", "16", "--out", "a")
    assert done.status == 0, done.err
    (file,) = (tmp_path / "a").iterdir()
    with Image.open(file) as drawn:
        assert np.array_equal(np.array(drawn)[:, 8:], picture(side=16).permute(1, 2, 0).numpy()[:, 8:])
        assert "Denoising strength: 1.0" in drawn.info["parameters"]
    recipe = read_recipe(file)
    assert recipe["from"].startswith("p.png ")
    assert ", m.png " in recipe["from"]
    part = here(*given, "--from", "p.png", "--strength", 0.3, "--size", "16x8", "--sampler", "ddim:eta=0.5",
                "--guidance", "apg:3+rescale", "--out", "b")  # fmt: skip
    assert "the middle 16 x 8 are used" in part.err
    (file,) = (tmp_path / "b").iterdir()
    recipe = read_recipe(file)
    assert (recipe["strength"], recipe["sampler_options"], recipe["guidance_rules"]) == (
        0.3, {"eta": 0.5}, "apg+rescale",
    )  # fmt: skip
    (tmp_path / "lines.jsonl").write_text('{"label": "a", "from": "p.png"}\n{"label": "b"}\n')
    lines = here("sample", folder, "--prompts", "lines.jsonl", "--out", "c")
    assert "some lines have a picture to start from" in lines.refusal
    for more, words in (
        (("--mask", "m.png"), "--mask says what to fill of a picture: give that as --from"),
        (("--strength", 0.5), "give the picture to start from too"),
        (("--from", "no.png"), "cannot read no.png"),
        (("--from", "lines.jsonl"), "cannot read lines.jsonl"),
        (("--sampler", "dimm"), "did you mean 'ddim'"),
        (("--guidance", "autoguidance:2,weak=no"), "no"),
    ):
        assert words in here(*given, *more, "--out", "c").refusal
        assert not (tmp_path / "c").exists()


def test_a_model_that_learned_to_fill_takes_the_mask_itself(here: Here, tmp_path: Path) -> None:
    small(hole=image.Config(shows="masked", through="resize", dropout=0.1)).save(tmp_path / "m")
    Image.new("RGB", (8, 8), "red").save("p.png")
    Image.new("L", (8, 8), 255).save("h.png")
    given = ("sample", "m", "--label", "a", "--count", 1, "--steps", 1, "--mask", "h.png")
    assert here(*given, "--from", "p.png").refusal == (
        "--mask says what to fill of a picture: give that as --picture"
    )
    assert here(*given, "--picture", "p.png").status == 0


def test_samplers_are_listed(here: Here) -> None:
    out = here("samplers").out
    for table in (SAMPLERS, GRIDS, GUIDANCES):
        for name in table:
            assert f"\n  {name}" in out
            assert table.sentence(name) in out
    assert "  ddim:eta=0.0\n" in out
    assert "  autoguidance:scale,weak\n" in out
    assert all(name in here("sample", "--help").out for name in ("--from", "--strength", "carrara samplers"))
