"""From requests to pictures: the same picture in any company, guidance, moments, PNGs that carry their recipe."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from carrara.autoencoders import kl
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.conditions import label
from carrara.denoisers import unet
from carrara.errors import UserError
from carrara.generation.model import Model, ModelConfig, build_network, load_model
from carrara.generation.png import png_note, read_recipe, save_png, sheet, to_image
from carrara.generation.sample import Settings, decode, denoise, generate
from carrara.importing.summary import few
from carrara.tensors import from_pixels
from carrara.training.recipe import Pixels
from conftest import Command, Trained

PROMPTS = ["red disc", "blau", "", "a green bar that is far longer than all the other prompts of this test"]


@pytest.fixture(scope="module")
def model(trained: Trained) -> Model:
    return load_model(trained.diffusion / "model")


def settings(**changes: Any) -> Settings:
    return Settings(**{"seed": 7, "steps": 6, "guidance": 2.0, **changes})


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddim", "heun", "ancestral"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_same_picture_alone_and_in_a_batch_of_16(model: Model, sampler: str, guidance: float) -> None:
    chosen = settings(sampler=sampler, guidance=guidance)
    rows = [{"caption": PROMPTS[k % 4]} for k in range(16)]
    together = generate(model, rows, chosen, batch=16)
    assert together.shape == (16, 3, 16, 16)
    assert together.dtype == torch.uint8
    for k in (0, 3, 6, 13):
        alone = generate(model, [rows[k]], chosen, numbers=[k])
        assert (alone[0].int() - together[k].int()).abs().max() <= 1
    apart = torch.cdist(together.flatten(1).float(), together.flatten(1).float()) + torch.eye(16) * 1e9
    assert apart.min() > 50, "pictures that should differ do"


def test_a_row_of_batches_is_one_batch(model: Model) -> None:
    rows = [{"caption": PROMPTS[k % 4]} for k in range(5)]
    a, b = generate(model, rows, settings(), batch=2), generate(model, rows, settings(), batch=16)
    assert (a.int() - b.int()).abs().max() <= 1
    assert torch.equal(generate(model, rows, settings()), b)


def test_seed_number_and_prompt_all_matter(model: Model) -> None:
    def picture(prompt: str, number: int = 0, **changes: Any) -> torch.Tensor:
        return generate(model, [{"caption": prompt}], settings(**changes), numbers=[number]).int()

    first = picture("red disc")
    assert torch.equal(first, picture("red disc"))
    for other in (
        picture("red disc", seed=8),
        picture("red disc", 1),
        picture("blue bar"),
        picture("red disc", guidance=6.0),
        picture("red disc", steps=3),
    ):
        assert (first - other).abs().max() > 1


class Watched:
    """Counts the calls of a network and the pictures in each."""

    def __init__(self, model: Model) -> None:
        self.sizes: list[int] = []
        self.hook = model.network.register_forward_pre_hook(lambda _, given: self.sizes.append(len(given[0])))

    def __enter__(self) -> list[int]:
        return self.sizes

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


@pytest.mark.parametrize(("guidance", "batch"), [(1.0, 3), (2.0, 6), (0.0, 6)])
def test_the_network_is_called_once_a_step(model: Model, guidance: float, batch: int) -> None:
    """Both branches in one call; with guidance off only the branch that counts."""
    with Watched(model) as sizes:
        generate(model, [{"caption": "red disc"}] * 3, settings(sampler="ddim", guidance=guidance))
    assert sizes == [batch] * 6


@pytest.mark.parametrize(
    ("guidance", "encoded"), [(1.0, [["red disc", "blau"]]), (2.0, [["red disc", "blau", None]])]
)
def test_each_different_prompt_is_encoded_once(
    model: Model, monkeypatch: pytest.MonkeyPatch, guidance: float, encoded: list[list[str | None]]
) -> None:
    encoder: Any = model.conditions["caption"]
    prepare, seen = encoder.prepare, []

    def watched(captions: list[str | None], *more: Any) -> torch.Tensor:
        seen.append(list(captions))
        return prepare(captions, *more)

    monkeypatch.setattr(encoder, "prepare", watched)
    rows = [{"caption": word} for word in ("red disc", "blau", "red disc", "blau")]
    pictures = generate(model, rows, settings(guidance=guidance, steps=2))
    assert seen == encoded
    assert (pictures[0].int() - pictures[1].int()).abs().max() > 1


def test_guidance_pulls_along_the_difference(model: Model) -> None:
    """x0 = unconditional + scale (conditional - unconditional), at the first step where z is the same for all."""

    def first(guidance: float, prompt: str | None = "red disc") -> torch.Tensor:
        return next(
            denoise(model, [{"caption": prompt}], [0], settings(sampler="ddim", guidance=guidance))
        ).x0

    conditional, null = first(1.0), first(1.0, None)
    assert (conditional - null).abs().max() > 1e-4
    torch.testing.assert_close(first(3.0), null + 3 * (conditional - null), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(first(1.0, ""), null, rtol=1e-5, atol=1e-6)


def test_a_negative_prompt_takes_the_null_s_place(model: Model) -> None:
    def made(**row: str) -> torch.Tensor:
        return generate(model, [{"caption": "red disc", **row}], settings(guidance=4.0)).int()

    assert torch.equal(made(), made(negative=""))
    assert (made() - made(negative="blue bar")).abs().max() > 1
    same = made(negative="red disc")
    plain = generate(model, [{"caption": "red disc"}], settings(guidance=1.0)).int()
    assert (same - plain).abs().max() <= 1


def test_moments_are_numbered_and_end_at_the_picture(model: Model) -> None:
    rows = [{"caption": "red disc"}, {}]
    moments = list(denoise(model, rows, [0, 1], settings(sampler="ddim")))
    assert [(m.step, m.steps) for m in moments] == [(k, 6) for k in range(1, 7)]
    assert {m.z.shape for m in moments} == {m.x0.shape for m in moments} == {torch.Size([2, 4, 8, 8])}
    torch.testing.assert_close(moments[-1].z, moments[-1].x0, rtol=1e-4, atol=1e-4)
    away = [(m.z - moments[-1].z).square().mean().item() for m in moments]
    assert away == sorted(away, reverse=True)
    assert away[0] > 0.01
    assert torch.equal(decode(model, moments[-1].z), generate(model, rows, settings(sampler="ddim")))


def test_an_autoencoder_of_sixteen_bits_gives_sixteen(model: Model) -> None:
    deep = replace(model, autoencoder=replace(model.autoencoder, bits=16))
    plain, fine = (generate(m, [{"caption": "red disc"}], settings()) for m in (model, deep))
    assert fine.dtype == torch.uint16
    assert (fine.int() % 257 != 0).any()
    torch.testing.assert_close(from_pixels(fine), from_pixels(plain), rtol=0, atol=1.01 / 255)


def test_an_iterator_left_early_costs_nothing_more(model: Model) -> None:
    with Watched(model) as sizes:
        walk = denoise(model, [{}], [0], settings(sampler="ddim", guidance=1.0))
        next(walk)
        walk.close()  # type: ignore[attr-defined]
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 1001),
        ("seed", -1),
        ("seed", 2**63),
        ("guidance", -0.1),
        ("sampler", "x"),
        ("grid", "x"),
    ],
)
def test_settings_out_of_range(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        settings(**{field: value})


# --- files ---


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_carries_its_recipe(tmp_path: Path, channels: int) -> None:
    picture = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    recipe = {
        "prompt": '红苹果 ünd "quotes" \n 🍎',
        "seed": 2**62,
        "guidance": 2.5,
        "nested": {"a": [1, None]},
    }
    save_png(picture, tmp_path / "a.png", recipe)
    assert read_recipe(tmp_path / "a.png") == recipe
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (7, 5)
        assert image.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        assert image.tobytes() == picture.permute(1, 2, 0).contiguous().numpy().tobytes()
    save_png(picture, tmp_path / "b.png", dict(reversed(recipe.items())))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "b.png"}


def test_one_channel_keeps_sixteen_bits_and_more_become_eight(tmp_path: Path) -> None:
    deep = torch.from_numpy(np.random.default_rng(0).integers(0, 65536, (4, 5, 7)).astype(np.uint16))
    eight = (deep.double() / 257).round().to(torch.uint8).permute(1, 2, 0).numpy()
    save_png(deep[:1], tmp_path / "grey.png", {"seed": 1})
    with Image.open(tmp_path / "grey.png") as image:
        assert image.mode == "I;16"
        assert np.array_equal(np.array(image), deep[0].numpy())
    assert read_recipe(tmp_path / "grey.png") == {"seed": 1}
    for channels, mode in ((2, "LA"), (3, "RGB"), (4, "RGBA")):
        save_png(deep[:channels], tmp_path / "more.png", {})
        with Image.open(tmp_path / "more.png") as image:
            assert image.mode == mode
            assert np.array_equal(np.array(image), eight[..., :channels])
    assert np.array_equal(np.array(to_image(deep[:1])), eight[..., 0])  # on a page 8 bits are enough


def test_what_a_png_holds() -> None:
    assert all(png_note(*shape) is None for shape in ((1, 8), (2, 8), (3, 8), (4, 8), (1, 16)))
    assert "2 channels are written with 8 bits" in (png_note(2, 16) or "")
    for bits in (8, 16):
        with pytest.raises(UserError, match=f"have 5 channels of {bits} bits, .* at most 4"):
            png_note(5, bits)
    with pytest.raises(UserError, match="have 5 channels"):
        to_image(torch.zeros(5, 4, 4, dtype=torch.uint8))


def other_pictures(model: Model, path: Path, channels: int, bits: int) -> Path:
    """The model on disk, over an untrained autoencoder whose pictures have other channels."""
    config = kl.Config(image_channels=channels, channels=8, multipliers=(1, 2), blocks=1)
    scale = LatentScale(torch.zeros(4), torch.ones(4))
    autoencoder = StoredAutoencoder.of(config.build(), config, 16, {}, bits).with_scale(scale)
    replace(model, autoencoder=autoencoder).save(path)
    return path


@pytest.mark.parametrize(("channels", "bits", "mode"), [(1, 16, "I;16"), (2, 8, "LA"), (3, 16, "RGB")])
def test_samples_of_other_channels_and_depths(
    model: Model, carrara: Command, channels: int, bits: int, mode: str
) -> None:
    folder = other_pictures(model, carrara.folder / "model", channels, bits)
    done = carrara("sample", folder, "red disc", "--count", 2, "--steps", 2, "--out", "made")
    assert done.status == 0, done.err
    notes = [*few(model.passport["pictures"]), *filter(None, [png_note(channels, bits)])]
    assert done.err == "".join(f"note: {note}\n" for note in notes)
    files = [carrara.folder / line for line in done.out.splitlines() if line.endswith(".png")]
    assert len(files) == 2
    for file in files:
        with Image.open(file) as image:
            assert (image.mode, image.size) == (mode, (16, 16))


def test_samples_that_no_png_holds_are_refused_at_once(model: Model, carrara: Command) -> None:
    folder = other_pictures(model, carrara.folder / "model", 5, 8)
    refusal = carrara("sample", folder, "red disc", "--out", "made").refusal
    assert (
        refusal == "this model's pictures have 5 channels of 8 bits, which no PNG holds; expected at most 4"
    )
    assert not (carrara.folder / "made").exists()


def test_a_png_of_others_has_no_recipe(tmp_path: Path) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="carries no Carrara recipe"):
        read_recipe(tmp_path / "a.png")


def test_a_png_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        save_png(torch.zeros(3, 4, 4, dtype=torch.uint8), tmp_path / "no" / "a.png", {})


def test_a_sheet_holds_every_picture() -> None:
    pictures = torch.stack([torch.full((3, 4, 6), 10 * k, dtype=torch.uint8) for k in range(5)])
    canvas = sheet(pictures, 2, gap=1)
    assert canvas.size == (2 * 7 + 1, 3 * 5 + 1)
    for k in range(5):
        assert canvas.getpixel((1 + (k % 2) * 7 + 3, 1 + (k // 2) * 5 + 2)) == (10 * k,) * 3
    assert canvas.getpixel((14, 15)) == (255, 255, 255)
    assert sheet(pictures, 5, gap=0, zoom=3).size == (5 * 18, 12)
    assert to_image(torch.zeros(1, 4, 6, dtype=torch.uint8)).mode == "L"


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_learnt_variance_is_sampled_with(guidance: float) -> None:
    """By `ancestral`, whose noise is then as wide as the network says: 1 is the forward step's, 0 the posterior's."""
    torch.manual_seed(0)
    config = ModelConfig(
        schedule="linear",
        parameterization="eps",
        denoiser=unet.Config(channels=8, multipliers=(1,), blocks=1, attention=(), learnt_variance=True),
        conditions={"label": label.Config(width=8)},
    )
    conditions = nn.ModuleDict({"label": label.LabelEncoder(label.Config(width=8), ["a", "b"])})
    stored = Pixels(size=8).autoencoder()
    network = build_network(config, conditions, 3)
    model = Model(config, network.eval(), conditions.eval(), stored, {})
    wide: Any = network.get_submodule("conv_out")
    with torch.no_grad():
        wide.weight[3:] = 0

    def last(v: float, **options: float) -> torch.Tensor:
        with torch.no_grad():
            wide.bias[3:] = 2 * v - 1
        chosen = Settings(sampler="ancestral", grid="trailing", steps=4, guidance=guidance,
                          sampler_options=options or None)  # fmt: skip
        return list(denoise(model, [{"label": "a"}, {"label": "b"}], [0, 1], chosen))[-1].z

    for v in (0.0, 0.4, 1.0):
        torch.testing.assert_close(last(v), last(0.7, variance=v))
    assert (last(0.0) - last(1.0)).abs().mean() > 0.01
