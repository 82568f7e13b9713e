"""A request: what a person asks for in words and files, read as columns by name, the same that training reads.

What a model can know of a prompt: its languages, its scripts, its window.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from carrara.conditions.random_holes import Masked, blend
from carrara.conditions.text import unseen_note
from carrara.dataset.columns import KINDS
from carrara.errors import BadPicture, UserError, nearest
from carrara.files import read_bytes
from carrara.generation.editing import Original
from carrara.generation.model import WORDS
from carrara.generation.options import RequestOptions
from carrara.images.decode import class_ids, whole
from carrara.text import nfc

if TYPE_CHECKING:
    from carrara.generation.model import Model


_WANTED = {
    "text": "a prompt",
    "label": "a class (--label)",
}  # a model makes pictures without them, but of what?


@dataclass(frozen=True)
class Request:
    """``row`` is what conditions read, ``told`` what a picture's recipe keeps of it (files by their hash).

    ``start`` is the picture that sampling starts from, with the hole that is filled in it.
    """

    row: Mapping[str, Any]
    told: Mapping[str, str]
    remarks: list[str] = field(default_factory=list)
    start: Original | None = None

    def finish(self, picture: Tensor) -> Tensor:
        """The picture as it is handed over ``[c H W]``: what was given outside of the hole stays."""
        picture = self.start.finish(picture) if self.start else picture
        for value in self.row.values():
            if isinstance(value, Masked):
                return blend(value.picture, picture, value.mask)
        return picture


def read(model: Model, asked: RequestOptions, guidance: float) -> Request:
    """The row of a request for this model, with what the user should know of it.

    UserError where a file cannot be read, a value is none that a condition knows, or nothing takes what was given.
    """
    texts = {
        name: _letters(text) for name in ("prompt", "negative", "label") if (text := getattr(asked, name))
    }
    asked = asked.model_copy(update=texts)
    row: dict[str, Any] = {}
    encoders: dict[str, Any] = dict(model.conditions.items())
    forms = {str(encoder.form) for encoder in encoders.values()}
    remarks: list[str] = []
    if asked.prompt and "text" not in forms:
        remarks.append("this model was trained without captions; the prompt is not used")
    for form, given, option in (
        ("label", asked.label, "--label"),
        ("picture", asked.picture or None, "--picture"),
        ("boxes", asked.boxes, "--boxes"),
        ("size", asked.original, "--original"),
    ):
        if given is not None and form not in forms:
            takes = ", ".join(f"{name} ({e.form})" for name, e in encoders.items()) or "nothing"
            raise UserError(f"this model has no condition for {option}; it takes {takes}")
    files = _files(encoders, asked)
    told: dict[str, Any] = {"caption": asked.prompt, "negative": asked.negative} if "text" in forms else {}
    if asked.negative:
        row["negative"] = asked.negative
        remarks += _negative_remarks(model, asked.negative, guidance)
    spans = model.passport.get("ranges", {})
    for encoder in encoders.values():
        value, note = _value(encoder, asked, files, spans)
        if value is None and encoder.form in _WANTED:
            remarks.append(
                f"without {_WANTED[encoder.form]} the pictures show anything that the model learned"
            )
        if note:
            told[str(encoder.column)] = note
        if value is not None:
            row[str(encoder.column)] = value
        remarks += encoder.remarks(value)
        if encoder.form == "text":
            remarks += _unseen(model, asked.prompt)
    start = None
    if asked.start is not None:
        start, told["from"] = _start(model, asked.start, None if _own_holes(encoders) else asked.mask)
    return Request(row, told, list(dict.fromkeys(remarks)), start)


def _letters(text: str) -> str:
    """As training read them; blanks alone are no text. UserError of what are no letters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text[:40]!r} is no text: it holds bytes that are not UTF-8") from None
    return nfc(text) if text.strip() else ""


def _own_holes(encoders: Mapping[str, Any]) -> list[str]:
    """The columns of conditions that fill holes themselves: a mask is theirs, with the picture that they are shown."""
    return [str(e.column) for e in encoders.values() if e.form == "picture" and e.config.shows == "masked"]


def _files(encoders: Mapping[str, Any], asked: RequestOptions) -> dict[str, Path]:
    """Column to the picture for it. UserError where it is not clear which a picture is for, or a mask is for none."""
    pictured = [encoder for encoder in encoders.values() if encoder.form == "picture"]
    columns = list(dict.fromkeys(str(encoder.column) for encoder in pictured))
    masked = _own_holes(encoders)
    files: dict[str, Path] = {}
    for given in asked.picture:
        column, sign, file = given.partition("=")
        if not sign or (column not in columns and Path(given).exists()):
            if len(columns) != 1:
                told = ", ".join(f"--picture {name}=FILE" for name in columns)
                raise UserError(f"this model is shown several pictures; say which this one is: {told}")
            column, file = columns[0], given
        if column not in columns:
            raise UserError(
                f"this model is shown no {column!r}{nearest(column, columns)}; expected {', '.join(columns)}"
            )
        if column in files:
            raise UserError(f"two pictures were given for {column!r}; expected one")
        files[column] = Path(file)
    if asked.mask is not None and not (files.keys() & set(masked) if masked else asked.start):
        raise UserError(
            f"--mask says what to fill of a picture: give that as {'--picture' if masked else '--from'}"
        )
    return files


def _negative_remarks(model: Model, negative: str, guidance: float) -> list[str]:
    """Why the negative prompt is not used, or what should be known of it."""
    texts = {name: e for name, e in model.conditions.items() if e.form == "text"}
    if not texts:
        return ["this model was trained without captions; the negative prompt is not used"]
    if guidance == 1:
        return ["guidance is 1, which is off; the negative prompt is not used"]
    used: list[Any] = [e for name, e in texts.items() if model.config.conditions[name].dropout > 0]
    if not used:
        return ["this model never trained without its captions; the negative prompt is not used"]
    remarks = [remark for encoder in used for remark in encoder.remarks(negative)]
    return [f"negative prompt: {remark}" for remark in remarks + _unseen(model, negative)]


def _unseen(model: Model, prompt: str) -> list[str]:
    words = model.passport.get(WORDS)
    return unseen_note(prompt, words) if isinstance(words, str) else []


def _value(
    encoder: Any, asked: RequestOptions, files: Mapping[str, Path], spans: Mapping[str, Any]
) -> tuple[Any, str]:
    """A condition's value, and what the recipe says of it."""
    if encoder.form == "text":
        return asked.prompt or None, ""
    if encoder.form == "label":
        return asked.label, asked.label or ""
    if encoder.form == "size":
        return asked.original, asked.original or ""
    if encoder.form == "boxes" and asked.boxes is not None:
        text = asked.boxes
        if not text.lstrip().startswith("["):
            text = read_bytes(Path(text)).decode("utf-8", "replace")
        try:
            boxes = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the boxes are not JSON: {error}; expected a list or the file of one") from None
        said = _letters(json.dumps(boxes, ensure_ascii=False))
        return said, said
    if encoder.form == "picture" and (file := files.get(str(encoder.column))) is not None:
        return _picture(encoder, file, asked.mask, spans)
    return None, ""


def _picture(encoder: Any, path: Path, mask: Path | None, spans: Mapping[str, Any]) -> tuple[Any, str]:
    """A picture, a picture with a hole, or a map of classes, as the condition takes it.

    ``spans`` are the data set's ranges that the model was trained with.
    """
    try:
        if encoder.config.shows == "map":
            import torch

            data, told = _read(path)
            return torch.from_numpy(class_ids(data).astype("int64")), told
    except BadPicture as error:
        raise UserError(f"cannot read {path}: {error}") from None
    beside = encoder.column in KINDS
    span = spans.get(encoder.column if beside else "image")
    picture, told = _pixels(path, encoder.channels, bits=encoder.bits, span=span, managed=not beside)
    if encoder.config.shows != "masked":
        return picture, told
    if mask is None:
        raise UserError(
            "this model fills holes: give the hole as --mask, a picture that is white where it is"
        )
    hole, hidden = _pixels(mask, 1)
    return Masked(picture, hole[0] > 127), f"{told}, {hidden}"


def _start(model: Model, path: Path, mask: Path | None) -> tuple[Original, str]:
    """The picture to start from, with channels and bits as the model's own, and what the recipe says of it."""
    autoencoder, span = model.autoencoder, model.passport.get("ranges", {}).get("image")
    picture, told = _pixels(path, int(autoencoder.config.image_channels), bits=autoencoder.bits, span=span)
    hole = None
    if mask is not None:
        hole, hidden = _pixels(mask, 1)
        hole, told = hole[0] > 127, f"{told}, {hidden}"
    original = Original(picture, hole)
    original.check(model)
    return original, told


def _pixels(
    path: Path, channels: int, *, bits: int = 8, span: Any = None, managed: bool = True
) -> tuple[Tensor, str]:
    """A file's picture ``[channels h w]``, and its name and hash; UserError where it is none."""
    data, told = _read(path)
    try:
        return whole(data, channels, bits=bits, span=tuple(span) if span else None, managed=managed), told
    except BadPicture as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _read(path: Path) -> tuple[bytes, str]:
    data = read_bytes(path)
    return data, f"{path.name} {hashlib.sha256(data).hexdigest()[:12]}"


def remarks(model: Model, prompt: str) -> Sequence[str]:
    """Sentences for the user: unconditional model, a script that no caption used, words beyond the window."""
    encoders = [e for e in cast(Any, model.conditions).values() if e.form == "text"]
    if not encoders:
        return ["this model was trained without captions; the prompt is not used"] if prompt else []
    return [remark for encoder in encoders for remark in encoder.remarks(prompt)]
