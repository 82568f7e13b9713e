"""A captioner that others trained, from a folder on this machine in the form of transformers (BLIP and its like)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.data.keep.captioning import OfPictures, spelt
from carrara.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from carrara.data.table import Dataset

TOKENS = 48  # of a caption at most
_SMALL = 16 * 2**20  # bytes


def from_folder(dataset: Dataset, folder: Path, *, device: Any = "cpu") -> OfPictures:
    """The captioner in ``folder``: its greedy answer to the picture alone, without a prompt.

    Nothing is looked for elsewhere, no program of the folder is run, and weights are safetensors only. UserError
    where the folder has no such model, or transformers is missing.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(
            "a captioner's folder needs transformers: pip install 'carrara[pretrained]'"
        ) from None
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no captioner: expected config.json, weights and the processor's files")
    transformers.utils.logging.disable_progress_bar()
    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        both = transformers.AutoProcessor.from_pretrained(folder, backend="pil", **here)
        if hasattr(both, "image_processor"):
            eye, tongue = both.image_processor, both.tokenizer
        else:  # an encoder and a decoder that were put together have two files
            eye = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **here)
            tongue = transformers.AutoTokenizer.from_pretrained(folder, **here)
        model = transformers.AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, **here)
    except Exception as error:  # whatever the files of others make the library raise
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} cannot be read as a captioner: {said}") from None
    model = model.to(device).eval()

    def name_them(images: list[Image.Image]) -> list[str]:
        import torch

        pixels = eye(images=images, return_tensors="pt")["pixel_values"].to(device)
        with torch.inference_mode():
            ids = model.generate(pixel_values=pixels, max_new_tokens=TOKENS, do_sample=False)
        texts: list[str] = tongue.batch_decode(ids, skip_special_tokens=True)
        return texts

    config = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:8]
    return OfPictures(dataset, spelt(f"{folder.resolve().name}-{config}"), _key(folder), name_them)


def _key(folder: Path) -> str:
    """Another one where a file is another: small ones by what is in them, weights by size and time."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        about = path.stat()
        digest.update(f"{path.name!r} {about.st_size} ".encode())
        digest.update(path.read_bytes() if about.st_size < _SMALL else str(about.st_mtime_ns).encode())
    return digest.hexdigest()
