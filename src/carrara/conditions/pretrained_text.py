"""Text through frozen encoders that others trained: CLIP (Radford et al. 2021), T5 (Raffel et al. 2020), and so on.

What they make of the captions is computed once and kept beside the pictures. Several at once lie side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from carrara.conditions import text
from carrara.conditions.condition import Columns, Derivation, Form, Latent, dropped
from carrara.conditions.frozen_encoder import EncoderFolder
from carrara.config import Config as Base
from carrara.context import Context
from carrara.errors import UserError
from carrara.files import json_object
from carrara.geometry import Size
from carrara.tensors import sample_uniform

_REFERENCES = "references.json"
_CODE = 1  # raise it when the way from a caption to what is kept of it changes
_AT_ONCE = 32


class Config(Base):
    """Frozen text encoders from folders on this machine, one or several side by side."""

    kind: Literal["pretrained_text"] = "pretrained_text"
    paths: tuple[str, ...] = Field((), description="Folders of encoders, with weights and tokenizer.")
    languages: tuple[str, ...] = Field((), description="Languages trained on, e.g. en, de; none means all.")
    length: int = Field(77, ge=2, description="Longest caption in tokens; longer ones are cut, and counted.")
    layer: int = Field(
        -1, le=-1, description="Layer whose output is read, from the end: -2 is the penultimate."
    )
    norm: bool = Field(True, description="Put the encoder's last norm, where it has one, on that layer.")
    padding: Literal["masked", "read"] = Field(
        "masked",
        description="What fills a caption up to the window is hidden, or read like words (Stable Diffusion).",
    )
    tokens: bool = Field(True, description="Give the tokens, side by side along their width.")
    pooled: Literal["none", "last", "all"] = Field(
        "none", description="Give a vector for the whole text too: the last encoder's, or that of all."
    )
    prefix: str = Field("", description="Put before every caption; e5 wants 'query: '.")
    dropout: float = Field(0.1, ge=0, le=1, description="Share of pictures trained without their caption.")

    @model_validator(mode="after")
    def _gives_something(self) -> Config:
        if not self.tokens and self.pooled == "none":
            raise ValueError("tokens is off and pooled is 'none': nothing is left of the text")
        return self

    def reads(self, data: Columns) -> list[str]:
        """The caption columns, as `text` chooses them. UserError where a folder cannot be used, before all else."""
        self._open(self.paths)
        return text.Config(languages=self.languages).reads(data)

    def learn(self, data: Columns, latent: Latent | None = None) -> PretrainedTextEncoder:
        """The encoder, with what the empty text becomes. UserError where a folder cannot be used as asked."""
        encoder = self.opened()
        encoder.remember_nothing()
        return encoder

    def opened(self) -> PretrainedTextEncoder:
        """The same without what the empty text becomes: nothing is computed."""
        return PretrainedTextEncoder(self, self._open(self.paths))

    def restore(self, folder: Path, latent: Latent | None = None) -> PretrainedTextEncoder:
        """The encoder, if its folders are those that the model was trained with; UserError where they are not.

        A folder that is not at its path, as one relative to where the training was begun, is looked for where it
        was then, unless somebody has changed the path.
        """
        file = folder / _REFERENCES
        try:
            known = (json_object(file.read_bytes()) or {})["encoders"]
            expected = [dict(one["sha256"]) for one in known]
        except OSError:
            raise UserError(f"{folder.parent} is incomplete: it lacks {folder.name}/{_REFERENCES}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged: {error}") from None
        if len(self.paths) != len(known):
            raise UserError(
                f"{folder.parent} was trained with {len(known)} text encoders, but 'paths' in its model.toml has "
                f"{len(self.paths)}"
            )
        try:
            folders = self._open([_found(path, one) for path, one in zip(self.paths, known, strict=True)])
        except UserError as error:
            moved = f"if it was moved, change 'paths' in {folder.parent / 'model.toml'}"
            raise UserError(f"{error}; {moved}") from None
        for one, hashes, kept in zip(folders, expected, known, strict=True):
            one.recognise(hashes.get("weights", ""), kept.get("stamps"))
            for part, sha256 in hashes.items():
                if one.hashes.get(part) != sha256:
                    raise UserError(
                        f"{one.path} is not the text encoder that {folder.parent} was trained with: the SHA-256 "
                        f"of its {part} is {one.hashes.get(part, 'unknown')[:12]}…, expected {sha256[:12]}…"
                    )
        return PretrainedTextEncoder(self, folders)

    def _open(self, paths: Sequence[str]) -> list[EncoderFolder]:
        if not paths:
            raise UserError("pretrained_text needs 'paths', the folders of one or more text encoders")
        folders = [EncoderFolder(path) for path in paths]
        for folder in folders:
            if -self.layer > folder.layers:
                raise UserError(
                    f"layer is {self.layer}, but {folder.path} has {folder.layers} layers, down to -{folder.layers}"
                )
            if folder.longest is not None and self.length > folder.longest:
                raise UserError(
                    f"length is {self.length}, but {folder.path} reads {folder.longest} tokens at most"
                )
        return folders


class PretrainedTextEncoder(nn.Module):
    """Texts, or what was derived of them, to Context(tokens [b length d], mask, vector [b d]), without a gradient.

    A text becomes one block ``[rows d]``: a row a token, zero beyond its end where padding is masked, then the
    vector over as many rows as it takes. A block of zeros stands for a caption that is not there.
    """

    column = "caption"
    form: Form = "text"
    image = None
    null: Tensor

    def __init__(self, config: Config, folders: Sequence[EncoderFolder]) -> None:
        super().__init__()
        self.config, self.folders = config, list(folders)
        pooling = {"none": [], "last": self.folders[-1:], "all": self.folders}[config.pooled]
        self.tokens = sum(folder.width for folder in self.folders) if config.tokens else None
        self.vector = sum(folder.pooled_width for folder in pooling) or None
        self._pooling = len(pooling)
        self._tokens_end = config.length if self.tokens else 0
        width = self.tokens or self.vector or 0
        rows = self._tokens_end + -(-(self.vector or 0) // width)
        self.register_buffer("null", torch.zeros(rows, width, dtype=torch.float16))

    def remember_nothing(self) -> None:
        """Computes the null: what the encoders make of the empty text."""
        for folder in self.folders:
            if folder.count(self.config.prefix) == 0:
                raise UserError(
                    f"the tokenizer in {folder.tokenizer_folder} makes no token of the empty text, "
                    "which training without captions needs; its tokenizer.json adds none of its own"
                )
        self.null.copy_(_half(self._encode(self._tokenize([""])), self.config)[0])

    def keep(self, folder: Path) -> None:
        """Writes which encoders these are: paths, hashes, sizes and times of change, not their weights."""
        folder.mkdir(parents=True)
        known = [
            {
                "path": path,
                "resolved": str(one.path.resolve()),
                "sha256": one.hashes,
                "stamps": one.stamps,
                "model_type": one.config.model_type,
                "layers": one.layers,
                "width": one.width,
            }
            for path, one in zip(self.config.paths, self.folders, strict=True)
        ]
        content = json.dumps({"encoders": known}, indent=2, ensure_ascii=False)
        (folder / _REFERENCES).write_text(content, encoding="utf-8")

    def derivations(self, columns: Sequence[str]) -> Sequence[Derivation]:
        """What the encoders make of each column's captions, float16 [rows d] a picture."""
        known: dict[str, Any] = {
            "encoders": [one.hashes for one in self.folders],
            **self.config.model_dump(
                include={"length", "layer", "norm", "padding", "tokens", "pooled", "prefix"}
            ),
            "code": _CODE,
        }
        return [
            Derivation("text", {**known, "column": column}, column, _AT_ONCE, self._derive)
            for column in columns
        ]

    def draw(
        self, columns: Mapping[str, Any], seeds: Sequence[int], *, stream: int
    ) -> Sequence[str | Tensor | None]:
        """One caption a picture, as words or as what was derived of it, in one of its languages; None for none."""
        choice = sample_uniform(seeds, stream=16 * stream + 1).tolist()
        without = dropped(seeds, self.config.dropout, stream=stream)
        written = [values for name, values in columns.items() if name.startswith("caption")]
        there = [
            values.flatten(1).any(1).tolist() if isinstance(values, Tensor) else list(map(bool, values))
            for values in written
        ]
        drawn: list[str | Tensor | None] = []
        for index, (pick, drop) in enumerate(zip(choice, without, strict=True)):
            known = [values[index] for values, has in zip(written, there, strict=True) if has[index]]
            drawn.append(None if drop or not known else known[int(pick * len(known))])
        return drawn

    def cut(self, caption: str) -> int:
        """How many of a caption's tokens lie beyond the window of the encoder that has most, and are not read."""
        most = max(folder.count(self.config.prefix + caption) for folder in self.folders)
        return max(0, most - self.config.length)

    def remarks(self, value: str | None) -> list[str]:
        """Says which part of a prompt is beyond the window."""
        if cut := self.cut(value or ""):
            return [f"the last {cut} tokens of the prompt are beyond the model's window and are not read"]
        return []

    def prepare(
        self, values: Sequence[str | Tensor | None], size: Size | None = None
    ) -> Mapping[str, Tensor]:
        """``given [b]``, False where there is the null; with it the tokens of those given, or their blocks."""
        given = [isinstance(value, Tensor) or bool(value) for value in values]
        inputs = {"given": torch.tensor(given)}
        texts = [value for value in values if isinstance(value, str) and value]
        if texts:
            if len(texts) != sum(given):
                raise ValueError("some captions are words and others were derived already")
            return inputs | self._tokenize(texts)
        for folder in self.folders:  # training on what was derived needs no encoder
            folder.release()
        blocks = torch.zeros(len(values), *self.null.shape, dtype=self.null.dtype)
        for index, value in enumerate(values):  # autocast on a processor cannot stack 16-bit floats
            if isinstance(value, Tensor):
                blocks[index] = value
        return inputs | {"blocks": blocks}

    def forward(self, inputs: Mapping[str, Tensor]) -> Context:
        given, null = inputs["given"], self.null.float()
        if "blocks" in inputs:
            blocks = torch.where(given[:, None, None], inputs["blocks"].float(), null)
        else:
            blocks = null.repeat(len(given), 1, 1)
            blocks[given] = self._encode(inputs)
        vector = None
        if self.vector:
            vector = blocks[:, self._tokens_end :].flatten(1)[:, : self.vector]
        if not self.tokens:
            return Context(vector=vector)
        tokens = blocks[:, : self._tokens_end]
        read = self.config.padding == "read"
        mask = torch.ones_like(tokens[..., 0], dtype=torch.bool) if read else tokens.any(-1)
        return Context(tokens=tokens, mask=mask, vector=vector)

    def _tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``ids`` and ``mask`` for each encoder, its number before their names."""
        prefixed = [self.config.prefix + one for one in texts]
        full = self.config.padding == "read"
        return {
            f"{number}.{name}": value
            for number, folder in enumerate(self.folders)
            for name, value in folder.tokenize(prefixed, self.config.length, full=full).items()
        }

    def _encode(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Blocks float32 [b rows d] of tokenized texts."""
        masked, sides, pooled = self.config.padding == "masked", [], []
        for number, folder in enumerate(self.folders):
            ids, mask = inputs[f"{number}.ids"], inputs[f"{number}.mask"]
            tokens, vector = folder.run(
                ids, mask, layer=self.config.layer, norm=self.config.norm, masked=masked
            )
            if masked:
                tokens = tokens * mask[..., None]
            sides.append(nn.functional.pad(tokens, (0, 0, 0, self.config.length - tokens.shape[1])))
            pooled.append(vector)
        blocks = self.null.new_zeros(len(ids), *self.null.shape, dtype=torch.float32)
        if self.tokens:
            blocks[:, : self._tokens_end] = torch.cat(sides, -1)
        if self.vector:
            rest = blocks[:, self._tokens_end :]
            flat = torch.cat(pooled[-self._pooling :], -1)
            spare = rest[0].numel() - flat.shape[1]
            rest.copy_(nn.functional.pad(flat, (0, spare)).view_as(rest))
        return blocks

    def _derive(self, captions: Sequence[Any]) -> npt.NDArray[Any]:
        """Blocks of a column's captions; zeros where a picture has none."""
        written = [index for index, caption in enumerate(captions) if caption]
        blocks = torch.zeros(len(captions), *self.null.shape, dtype=torch.float16)
        if written:
            device = self.null.device
            inputs = self._tokenize([captions[index] for index in written])
            found = self._encode({name: value.to(device) for name, value in inputs.items()})
            blocks[written] = _half(found, self.config).cpu()
        return np.asarray(blocks.numpy())


def _found(path: str, known: Mapping[str, Any]) -> str:
    """The path, or where it led to when the model was written, unless it has been changed since."""
    resolved = str(known.get("resolved") or path)
    moved = not Path(path).expanduser().is_dir() and Path(resolved).is_dir()
    return resolved if moved and known.get("path") == path else path


def _half(blocks: Tensor, config: Config) -> Tensor:
    """In float16; UserError where a number is too large for it (inner layers of large T5 have such)."""
    if not bool((blocks.abs() <= torch.finfo(torch.float16).max).all()):
        raise UserError(
            f"layer {config.layer} without the last norm has numbers beyond 65504, which 16 bits cannot keep; "
            "take norm = true or another layer"
            if not config.norm
            else f"layer {config.layer} has numbers beyond 65504, which 16 bits cannot keep; take another layer"
        )
    return blocks.half()
