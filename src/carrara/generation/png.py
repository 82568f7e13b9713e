"""Pictures as files: PNGs that carry their recipe, and sheets of many."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from carrara.config import Config
from carrara.errors import UserError
from carrara.files import json_object, write_atomically
from carrara.tensors import from_pixels, to_pixels
from carrara.version import __version__

if TYPE_CHECKING:
    from PIL import Image

    from carrara.geometry import Size

KEY = "carrara"
SAMPLES = "samples"  # the folder of a run that `save_samples` fills
MOST = 4  # channels of a PNG: grey, grey with alpha, colour, colour with alpha


def png_note(channels: int, bits: int) -> str | None:
    """What is lost where a picture with ``channels`` of ``bits`` becomes a PNG, None where nothing is.

    UserError where it cannot become one.
    """
    if channels > MOST:
        raise UserError(
            f"this model's pictures have {channels} channels of {bits} bits, which no PNG holds; "
            f"expected at most {MOST}"
        )
    if bits == 16 and channels > 1:
        return f"PNGs of {channels} channels are written with 8 bits each; these pictures have 16"
    return None


def to_image(picture: Tensor) -> Image.Image:
    """``uint8`` or ``uint16 [c h w]`` with at most 4 channels to a Pillow image of 8 bits, to be looked at."""
    deep = picture.dtype == torch.uint16
    png_note(len(picture), 16 if deep else 8)
    return _image(to_pixels(from_pixels(picture)) if deep else picture)


def _image(picture: Tensor) -> Image.Image:
    from PIL import Image

    array = picture.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def save_png(picture: Tensor, path: Path, recipe: Mapping[str, Any], parameters: str = "") -> None:
    """Writes the PNG, whole or not at all, with ``recipe`` as JSON under the key "carrara".

    ``parameters`` is the text of that name for other programs. One channel of ``uint16`` keeps its 16 bits; all
    other pictures are written as `to_image` shows them.
    """
    image = _image(picture) if len(picture) == 1 else to_image(picture)
    write_png(image, path, recipe, parameters)


def write_png(image: Image.Image, path: Path, words: Mapping[str, Any], parameters: str = "") -> None:
    """Writes the PNG, whole or not at all, with ``words`` as JSON and, for other programs, ``parameters``."""
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_itxt(KEY, json.dumps(words, ensure_ascii=False, sort_keys=True))
    if parameters:
        about.add_text("parameters", parameters)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=about)
    write_atomically(path, file.getvalue())


def save_samples(pictures: Sequence[Tensor], run: Path, words: Mapping[str, Any], *, columns: int) -> None:
    """Pictures of a run's training as ``samples/SEEN.png``, small ones enlarged; UserError where it cannot be written.

    ``words`` say how they were made, "seen" after how many pictures.
    """
    grid = sheet(pictures, columns, zoom=max(1, 64 // pictures[0].shape[-1]))
    path = run / SAMPLES / f"{words['seen']:012d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(grid, path, words)


def picture_recipe(model: str, settings: Config, row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """All that decides a picture: the model's hash, the settings, the request, the picture's number."""
    return {
        **settings.model_dump(exclude_none=True),
        **{k: v for k, v in row.items() if v},
        "number": number,
        "model": model,
    }


_SAMPLERS = {
    "ddim": "DDIM", "euler": "Euler", "euler_ancestral": "Euler a", "heun": "Heun", "dpm2": "DPM2", "lms": "LMS",
    "plms": "PLMS", "unipc": "UniPC", "deis": "DEIS", "restart": "Restart", "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_3m_sde": "DPM++ 3M SDE", "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
}  # fmt: skip


def parameters(recipe: Mapping[str, Any], size: Size, name: str) -> str:
    """A recipe as other programs know it: the text of Stable Diffusion web UI's "parameters" in a PNG.

    ``name`` is the model's. Its infotext has the words, what is not wanted, and a line of "key: value".
    """
    values = {
        "Steps": recipe["steps"],
        "Sampler": _SAMPLERS.get(recipe["sampler"], recipe["sampler"]),
        "Schedule type": recipe["grid"].capitalize(),
        "CFG scale": f"{recipe['guidance']:g}",
        "Seed": recipe["seed"],
        "Size": f"{size[1]}x{size[0]}",
        "Model hash": recipe["model"][:10],
        "Model": json.dumps(name, ensure_ascii=False) if re.search("[,:\n]", name) else name,
        **({"Denoising strength": recipe["strength"]} if recipe.get("strength") else {}),
        **({"Picture number": recipe["number"]} if recipe["number"] else {}),
        "Version": f"Carrara {__version__}",
    }
    words = recipe.get("caption") or recipe.get("label") or ""
    against = f"Negative prompt: {recipe['negative']}" if recipe.get("negative") else ""
    return "\n".join(filter(None, [words, against, ", ".join(f"{k}: {v}" for k, v in values.items())]))


def short_hash(recipe: Mapping[str, Any]) -> str:
    """Six hexadecimal digits of a recipe: pictures made otherwise get another name."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:6]


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe inside a PNG that Carrara made; UserError where there is none."""
    from PIL import Image

    with Image.open(path) as image:
        text = image.info.get(KEY)
    recipe = json_object(text) if isinstance(text, str) else None
    if recipe is None:
        raise UserError(f"{path} carries no Carrara recipe")
    return recipe


def sheet(pictures: Tensor | Sequence[Tensor], columns: int, *, gap: int = 4, zoom: int = 1) -> Image.Image:
    """Pictures ``[c h w]``, as `to_image` takes them, in rows of ``columns`` on white."""
    from PIL import Image

    images = [to_image(picture) for picture in pictures]
    w, h = images[0].width * zoom, images[0].height * zoom
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (w + gap) + gap, rows * (h + gap) + gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        scaled = image.convert("RGB").resize((w, h), Image.Resampling.LANCZOS) if zoom > 1 else image
        canvas.paste(scaled, (gap + column * (w + gap), gap + row * (h + gap)))
    return canvas
