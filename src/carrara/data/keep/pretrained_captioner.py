"""A captioner that others trained, from a folder on this machine in the form of transformers (BLIP and its like)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.data.keep.captioning import OfPictures
from carrara.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from carrara.data.table import Dataset

TOKENS = 48  # of a caption at most


def from_folder(dataset: Dataset, folder: Path, *, device: Any = "cpu") -> OfPictures:
    """The captioner in ``folder``, which looks for nothing elsewhere and runs no code of its own. UserError where
    the folder has none, or transformers is missing."""
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor
    except ImportError:
        raise UserError(
            "a captioner's folder needs transformers: pip install 'carrara[pretrained]'"
        ) from None
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no captioner: expected config.json, weights and the processor's files")
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # whatever a folder of others makes the library raise
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} cannot be read as a captioner: {said}") from None
    model = model.to(device).eval()
    config = (folder / "config.json").read_bytes()
    name = f"{folder.resolve().name}-{hashlib.sha256(config).hexdigest()[:8]}"

    def name_them(images: list[Image.Image]) -> list[str]:
        import torch

        given = processor(images=images, return_tensors="pt").to(device)
        with torch.inference_mode():
            ids = model.generate(**given, max_new_tokens=TOKENS, do_sample=False)
        texts: list[str] = processor.batch_decode(ids, skip_special_tokens=True)
        return texts

    return OfPictures(dataset, name.replace(" ", "-"), name_them)
