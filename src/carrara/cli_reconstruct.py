"""`carrara reconstruct`: your picture, at its own size, through an autoencoder and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carrara.cli_models import writable
from carrara.console import console
from carrara.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def reconstruct(
    autoencoder: Annotated[Path, typer.Argument(help="An autoencoder's folder, or the run that made it.")],
    picture: Annotated[Path, typer.Argument(help="Your picture, of any size.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.", callback=writable)],
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="Side of a tile in pixels; by default 512, and only for large pictures."),
    ] = None,
) -> None:
    """Encode and decode a picture with an autoencoder, and measure what was lost."""

    from carrara.autoencoders import tiling
    from carrara.cli_models import open_autoencoder
    from carrara.generation.pictures import png_note, save_png
    from carrara.tensors import from_pixels, to_pixels
    from carrara.training.parallel import Placement

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
    from carrara.data.pictures import BadPicture, whole

    try:
        return whole(path.read_bytes(), channels, bits=bits)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
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

    from carrara.evaluation.reconstruction import psnr

    rows = torch.stack([psnr(a[None, :, y : y + 1], b[None, :, y : y + 1])[0] for y in range(a.shape[1])])
    return float(-10 * torch.log10((10 ** (-rows / 10)).mean()))
