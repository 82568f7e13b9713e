"""`carrara sample`: pictures from a model, each PNG with the recipe that made it.

`carrara reconstruct`: your picture, at its own size, through an autoencoder and back.
"""

from __future__ import annotations

import math
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from carrara.cli.models import make_folder
from carrara.cli.options import AutoencoderFolder, Destination, options, writable
from carrara.config import Config
from carrara.errors import UserError, one_line
from carrara.generation.options import RequestOptions, SamplingOptions
from carrara.interop.models import open_model
from carrara.model_place import STARTER
from carrara.terminal import Bar, console

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from carrara.generation.model import Model
    from carrara.generation.request import Request
    from carrara.generation.sample import Settings


_LARGE = 4  # times the area that a model learned at: from here on the user is told
_BATCH = 16  # pictures at once
_MOST = 100_000  # pictures of a command
_NOTES = 10  # on the prompts of a file
_ANY = "random"


class Output(Config):
    """How many pictures are made, and where to."""

    prompts: Path | None = Field(
        None,
        description="File with a prompt per line; in .jsonl each line has columns, e.g. caption, negative, label.",
    )
    count: int | None = Field(
        None, ge=1, le=_MOST, description="How many pictures of each prompt; by default 4, with --prompts 1."
    )
    sheet: bool = Field(False, description="Also make one picture of all, each with its words below.")
    out: Destination = Field(Path("pictures"), description="Folder for the PNGs.")


@options(RequestOptions, SamplingOptions, Output)
def sample(
    request: RequestOptions,
    sampling: SamplingOptions,
    output: Output,
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A model folder, the run that made it, or starter: a small model of emoji that comes with Carrara."
        ),
    ] = None,
) -> None:
    """Make pictures from a prompt, a class, a picture …; each PNG carries the recipe that made it."""
    from carrara.generation.editing import strength_for
    from carrara.training.fastest import fastest_sampling

    if model is None:
        raise UserError(
            f"which model? Give its folder, the run that made it, or {STARTER}, which comes with Carrara: "
            f'carrara sample {STARTER} "red heart"'
        )
    if output.out.is_file():
        raise UserError(f"{output.out} is a file; give a folder for the pictures with --out")
    opened = open_model(model, sampling.device)
    settings = _settings(opened, sampling)
    requests, remarks = _requests(opened, request, output.prompts, settings)
    strength = strength_for(settings.strength, [r.start for r in requests if r.start])
    settings = settings.model_copy(update={"strength": strength})
    each = output.count or (1 if output.prompts else 4)
    if (total := each * len(requests)) > _MOST:
        raise UserError(f"that would be {total} pictures; expected at most {_MOST} in one command")
    notes = _notes(opened, settings, model == Path(STARTER))
    if sampling.seed == _ANY:
        notes.append(f"the seed is {settings.seed}")
    for note in [*remarks, *notes]:
        sys.stderr.write(f"note: {note}\n")
    work = [(one, number) for one in requests for number in range(each)]
    hash_, whole = opened.hash, model.resolve()
    about = {"model": hash_, "name": whole.parent.name if whole.name == "model" else whole.name}
    opened = fastest_sampling(opened, [one.row for one, _ in work[:_BATCH]], settings, sampling.precision)
    _make(opened, work, settings, about, output)


def _settings(model: Model, chosen: SamplingOptions) -> Settings:
    """Those of the options; UserError also where the size does not fit the model."""
    from carrara.generation.sample import settings_for

    width, height = _sides(chosen.size) if chosen.size is not None else (None, None)
    given = chosen.model_dump(exclude={"size", "precision", "device"}) | {"seed": _seed(chosen.seed)}
    settings = settings_for(model, {**given, "width": width, "height": height})
    model.latent_of(settings.size(model))
    return settings


def _notes(model: Model, settings: Settings, starter: bool) -> list[str]:
    """What should be known of the model and the size."""
    from carrara.generation.png import png_note
    from carrara.importing.summary import few

    learned_from = model.passport.get("pictures")
    notes = few(learned_from) if isinstance(learned_from, int) and not starter else []
    notes += filter(None, [png_note(model.autoencoder.config.image_channels, model.autoencoder.bits)])
    if (areas := math.prod(settings.size(model)) / model.size**2) > _LARGE:
        notes.append(
            f"this model was trained at {model.size} pixels; pictures {areas:.0f} times as large take at least "
            "as many times as long, and show things at their original scale"
        )
    return notes


def _make(
    model: Model,
    work: list[tuple[Request, int]],
    settings: Settings,
    about: dict[str, str],
    output: Output,
) -> None:
    """Draws and saves the pictures of requests by number, and the sheet of all; prints their paths."""
    from carrara.generation.png import parameters, picture_recipe, save_png, short_hash, to_image, write_png
    from carrara.generation.sample import decode, denoise
    from carrara.pages.picture_grid import contact_sheet

    exact = {"precision": "bf16"} if model.bf16 else {}
    size, seed, out, sheet = settings.size(model), settings.seed, output.out, output.sheet
    written: list[Path] = []
    shown: list[tuple[Image.Image, str]] = []
    with Bar("sampling") as bar:
        for first in range(0, len(work), _BATCH):
            part = work[first : first + _BATCH]
            rows, numbers = [r.row for r, _ in part], [n for _, n in part]
            for moment in denoise(model, rows, numbers, settings, [r.start for r, _ in part if r.start]):
                done = (first + len(part) * moment.step / moment.steps) / len(work)
                words = f"step {moment.step} of {moment.steps}"
                bar.show(done, words, total=len(work) * moment.steps, unit="denoisings")
            make_folder(out)
            for (request, number), made in zip(part, decode(model, moment.z), strict=True):
                recipe = picture_recipe(about["model"], settings, {**request.told, **exact}, number)
                words = str(request.told.get("caption") or request.told.get("label") or "")
                path = out / f"{_slug(words)}_{seed}_{number}_{short_hash(recipe)}.png"
                picture = request.finish(made)
                save_png(picture, path, recipe, parameters(recipe, size, about["name"]))
                written.append(path)
                if sheet:
                    small = to_image(picture)
                    small.thumbnail((256, 256))
                    shown.append((small, words))
    if sheet:
        names = {"pictures": [path.name for path in written]}
        path = out / f"sheet_{seed}_{short_hash(names)}.png"
        write_png(contact_sheet([p for p, _ in shown], [words for _, words in shown]), path, names)
        written.append(path)
    for path in written:
        console.print(str(path), soft_wrap=True)


def _requests(
    model: Model, usual: RequestOptions, prompts: Path | None, settings: Settings
) -> tuple[list[Request], list[str]]:
    """What is asked for, by the command or by each line of a file, and what should be known of it."""
    from carrara.generation.prompt_file import read_prompts
    from carrara.generation.request import read

    asked = [(0, usual)]
    if prompts:
        if usual.prompt:
            raise UserError("a prompt and --prompts are both given; expected one of them")
        columns = [str(e.column) for e in model.conditions.values() if e.form == "picture"]
        asked = read_prompts(prompts, usual, columns)
    requests: list[Request] = []
    remarks: dict[str, list[int]] = {}
    for line, one in asked:
        try:
            requests.append(read(model, one, settings.guidance))
        except UserError as error:
            raise UserError(f"{prompts}, line {line}: {error}" if prompts else str(error)) from None
        start, about = requests[-1].start, [*requests[-1].remarks]
        about += start.remarks(settings.size(model)) if start else []
        if one.negative and settings.guidance != 1 and not settings.compares:
            about.append("this guidance makes no use of a negative prompt; it is not used")
        for remark in about:
            remarks.setdefault(remark, []).append(line)
    if 0 < sum(request.start is not None for request in requests) < len(requests):
        raise UserError(
            f"{prompts}: some lines have a picture to start from and some none; expected all, or --from"
        )
    notes = []
    for remark, lines in list(remarks.items())[:_NOTES]:
        where = f"line {lines[0]}: " if prompts and len(lines) < len(asked) else ""
        notes.append(f"{where}{remark}")
    if len(remarks) > _NOTES:
        notes.append(f"and {len(remarks) - _NOTES} more notes of this kind")
    return requests, notes


def _seed(text: str) -> int:
    """The number, or one drawn now; UserError of anything else."""
    if text == _ANY:
        return secrets.randbelow(2**32)
    if not re.fullmatch(r"-?[0-9]{1,19}", text):
        raise UserError(f"--seed is {text[:40]!r}; expected a whole number from 0 to 2^63 - 1, or {_ANY}")
    return int(text)


def _sides(size: str) -> tuple[int, int]:
    """Width and height from "96x64" or "64"; UserError of anything else."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:[xX×*]\s*([0-9]{1,9}))?\s*", size)
    if not match:
        raise UserError(f"cannot read the size {size[:40]!r}; expected width x height, for example 96x64")
    return int(match[1]), int(match[2] or match[1])


def _slug(prompt: str) -> str:
    words = re.sub(r"[^\w]+", "-", prompt.strip().lower()).strip("-")
    return words[:60].encode()[:120].decode(errors="ignore") or "picture"


def reconstruct(
    autoencoder: AutoencoderFolder,
    picture: Annotated[Path, typer.Argument(help="Your picture, of any size.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.", callback=writable)],
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="Side of a tile in pixels; by default 512, and only for large pictures."),
    ] = None,
) -> None:
    """Encode and decode a picture with an autoencoder, and measure what was lost."""

    from carrara.autoencoders import tiling
    from carrara.generation.png import png_note, save_png
    from carrara.interop.models import open_autoencoder
    from carrara.tensors import from_pixels, to_pixels
    from carrara.training.devices import Placement

    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: expected a name that ends in .png")
    if not out.parent.is_dir():
        raise UserError(f"cannot write {out}: there is no folder {out.parent}")
    stored = open_autoencoder(autoencoder)
    channels, device = stored.config.image_channels, Placement.choose().device
    module = stored.module.to(device)
    note = png_note(channels, stored.bits)
    original = _read(picture, channels, stored.bits)
    height, width = original.shape[-2:]
    factor = int(module.factor)  # type: ignore[arg-type]
    image = _to_multiple(from_pixels(original)[None], factor)
    tall, wide = image.shape[-2:]
    latent = tiling.encode_any_size(module, image.to(device), tile=tile).mode()
    again = tiling.decode_any_size(module, latent, tile=tile)[0, :, :height, :width]
    pixels = to_pixels(again, stored.bits).cpu()
    save_png(pixels, out, {"autoencoder": stored.hash})
    db = _psnr(original, pixels)
    shape = " x ".join(str(n) for n in latent.shape[1:])
    share = original.numel() / latent.numel()
    if note:
        sys.stderr.write(f"note: {note}\n")
    console.print(str(out), soft_wrap=True)
    console.print(f"{db:.2f} dB PSNR, {width} x {height} pixels", soft_wrap=True)
    console.print(f"latent {shape}: {share:.1f} times fewer numbers than the picture has", soft_wrap=True)
    side, overlap = tiling.tile_for(tall, wide, tile=tile)
    tiles = tiling.grid(tall, wide, factor, side, overlap)
    if not tiles.single:
        count = len(tiles.rows) * len(tiles.columns)
        console.print(f"in {count} tiles of {side // factor * factor} pixels", soft_wrap=True)


def _read(path: Path, channels: int, bits: int) -> Tensor:
    """The picture's pixels; UserError where there are none."""
    from carrara.errors import BadPicture
    from carrara.images.decode import whole

    try:
        return whole(path.read_bytes(), channels, bits=bits)
    except OSError as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from None
    except BadPicture as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _to_multiple(image: Tensor, factor: int) -> Tensor:
    """``image [b c h w]``, mirrored below and to the right until its sides are multiples of the factor."""
    import torch

    for axis in (2, 3):
        size = image.shape[axis]
        there_and_back = [
            *range(size),
            *range(size - 2, 0, -1),
        ]  # a picture may be smaller than what is added
        wanted = torch.arange(-(-size // factor) * factor) % len(there_and_back)
        image = image.index_select(axis, torch.tensor(there_and_back)[wanted])
    return image


def _psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of ``[c h w]``; row by row, since a large picture in double precision is eight times itself."""
    import torch

    from carrara.metrics.reconstruction import psnr

    rows = torch.stack([psnr(a[None, :, y : y + 1], b[None, :, y : y + 1])[0] for y in range(a.shape[1])])
    return float(-10 * torch.log10((10 ** (-rows / 10)).mean()))
