"""A folder with somebody's text encoder, as `transformers` saves them: checked, known by its hashes, run frozen."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carrara.errors import UserError, nearest, one_line
from carrara.model_folder import WeightFiles, weight_files

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))  # any one group will do
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Family:
    """Which class of `transformers` reads it, where its layers and its last norm are, positions it cannot use."""

    reads: str
    layers: str
    norm: str | None = None
    reserved: int = 0


FAMILIES: Mapping[str, Family] = {
    "clip": Family("CLIPTextModel", "encoder.layers", "final_layer_norm"),
    "clip_text_model": Family("CLIPTextModel", "encoder.layers", "final_layer_norm"),
    "t5": Family("T5EncoderModel", "encoder.block", "encoder.final_layer_norm"),
    "mt5": Family("MT5EncoderModel", "encoder.block", "encoder.final_layer_norm"),
    "umt5": Family("UMT5EncoderModel", "encoder.block", "encoder.final_layer_norm"),
    "bert": Family("BertModel", "encoder.layer"),
    "distilbert": Family("DistilBertModel", "transformer.layer"),
    "mpnet": Family("MPNetModel", "encoder.layer", reserved=2),
    "roberta": Family("RobertaModel", "encoder.layer", reserved=2),
    "xlm-roberta": Family("XLMRobertaModel", "encoder.layer", reserved=2),
}
"""By the ``model_type`` of its config.json."""


class EncoderFolder:
    """A frozen text encoder and its tokenizer. Opening checks what is there; the weights load when first used.

    ``path`` may be the folder ``text_encoder`` of a pipeline in diffusers' layout, whose tokenizer lies beside it.
    UserError where a file is missing, of an unknown kind, or `transformers` is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            siblings = [p.name for p in self.path.parent.iterdir()] if self.path.parent.is_dir() else []
            raise UserError(f"there is no text encoder at {self.path}{nearest(self.path.name, siblings)}")
        if not (self.path / _CONFIG).is_file():
            inside = [p.parent.name for p in sorted(self.path.glob(f"text_encoder*/{_CONFIG}"))]
            hint = f"; did you mean {str(self.path / inside[0])!r}?" if inside else ""
            raise UserError(_lacks(self.path, _CONFIG) + hint)
        self._model: Any = None
        self._known: str | None = None  # hash of the weights, where it need not be computed
        self._files = self._weight_files()
        self.weights, self.variant = self._files.files, self._files.variant
        self.tokenizer_folder, self.tokenizer_files = self._tokenizer_files()
        if importlib.util.find_spec("transformers") is None:
            raise UserError(
                "pretrained text encoders need the package transformers: pip install 'carrara[pretrained]'"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> EncoderFolder:
        return self  # frozen: one is enough for any number of copies of a model

    @cached_property
    def config(self) -> Any:
        """The text part of its configuration, as `transformers` understands it."""
        from transformers import AutoConfig

        try:
            kind = str(json.loads((self.path / _CONFIG).read_text(encoding="utf-8")).get("model_type"))
        except (ValueError, AttributeError) as error:
            raise UserError(f"{self.path / _CONFIG} is damaged: {error}") from None
        if kind not in FAMILIES:
            raise UserError(f"{self.path} holds a {kind!r}, no known text encoder{nearest(kind, FAMILIES)}")
        with _quietly(self.path):
            found = AutoConfig.from_pretrained(self.path, local_files_only=True)
        return getattr(found, "text_config", None) or found

    @property
    def family(self) -> Family:
        """How to read it."""
        return FAMILIES[self.config.model_type]

    @property
    def width(self) -> int:
        """Width of its tokens."""
        return int(self.config.hidden_size)

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return int(self.config.num_hidden_layers)

    @property
    def longest(self) -> int | None:
        """The most tokens that it has positions for; None where they are relative."""
        positions = getattr(self.config, "max_position_embeddings", None)
        return None if positions is None else int(positions) - self.family.reserved

    @cached_property
    def projected(self) -> bool:
        """Whether it is a CLIP with the projection into the space shared with pictures."""
        from safetensors import safe_open

        if not self.family.reads.startswith("CLIP"):
            return False
        with _quietly(self.path):
            for file in self.weights:
                if file.suffix == ".safetensors":
                    with safe_open(str(file), "pt") as tensors:
                        if "text_projection.weight" in tensors.keys():  # noqa: SIM118
                            return True
        return False

    @property
    def pooled_width(self) -> int:
        """Width of the one vector for a whole text."""
        return int(self.config.projection_dim) if self.projected else self.width

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer. UserError where it cannot fill a batch up."""
        from transformers import AutoTokenizer

        with _quietly(self.tokenizer_folder):
            found = AutoTokenizer.from_pretrained(self.tokenizer_folder, local_files_only=True)
        if found.pad_token_id is None:
            raise UserError(f"the tokenizer in {self.tokenizer_folder} names no token to fill up with")
        return found

    @cached_property
    def stamps(self) -> list[list[str | int]]:
        """Of the files of its weights name, size and time of change: while they stay, so does their hash."""
        found = [(file.name, file.stat()) for file in self.weights]
        return [[name, status.st_size, status.st_mtime_ns] for name, status in found]

    def recognise(self, sha256: str, stamps: Any) -> None:
        """Spares reading the weights, up to 19 GB, if their stamps still are those of when this was their hash."""
        if stamps == self.stamps:
            self._known = sha256

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of its configuration, its weights and its tokenizer; of a single file as `sha256sum` prints it."""
        _ = self.stamps  # before the files are read: weights that change meanwhile are read again next time
        return {
            "config": _digest([self.path / _CONFIG]),
            "weights": self._known or _digest(self.weights),
            "tokenizer": _digest(self.tokenizer_files),
        }

    def count(self, text: str) -> int:
        """How many tokens a text has, the tokenizer's own first and last ones included."""
        return len(self.tokenizer(text, verbose=False).input_ids)

    def tokenize(self, texts: Sequence[str], length: int, *, full: bool) -> dict[str, Tensor]:
        """``ids`` and ``mask`` [b l], cut at ``length`` and filled up to it or, if not ``full``, to the longest."""
        found = self.tokenizer(
            list(texts),
            padding="max_length" if full else "longest",
            truncation=True,
            max_length=length,
            return_tensors="pt",
            verbose=False,
        )
        return {"ids": found.input_ids, "mask": found.attention_mask.bool()}

    def run(
        self, ids: Tensor, mask: Tensor, *, layer: int, norm: bool, masked: bool
    ) -> tuple[Tensor, Tensor]:
        """Of ``ids [b l]`` the tokens [b l d] after ``layer`` (-1 the last) and a vector [b d] for the whole text.

        Float32, on the device of ``ids``, without a gradient. The vector is CLIP's own, read where the text ends
        and projected where it has a projection; of the others the mean over real tokens. ``norm`` puts the last
        norm, where there is one, on the tokens. Unless ``masked`` the encoder reads what fills the text up.
        """
        model = self._loaded(ids.device)
        inner = model.text_model if self.projected else model
        caught: list[Any] = []
        hook = attrgetter(self.family.layers)(inner)[layer].register_forward_hook(
            lambda module, given, out: caught.append(out)
        )
        try:
            with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
                out = model(input_ids=ids, attention_mask=mask.long() if masked else None)
                tokens: Tensor = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
                if norm and self.family.norm:
                    tokens = attrgetter(self.family.norm)(inner)(tokens)
        finally:
            hook.remove()
        if self.family.reads.startswith("CLIP"):
            return tokens, out.text_embeds if self.projected else out.pooler_output
        share = mask / mask.sum(1, keepdim=True)
        return tokens, (out.last_hidden_state * share[..., None]).sum(1)

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by the names that they have in their files."""
        return self._files.read()

    def release(self) -> None:
        """Gives the memory of the weights back; they load again when they are next used."""
        self._model = None

    def _loaded(self, device: torch.device) -> Any:
        if self._model is None:
            import transformers

            name = "CLIPTextModelWithProjection" if self.projected else self.family.reads
            # Loading must not disturb the random numbers of a training that it happens in the middle of.
            with torch.random.fork_rng(devices=[]), _quietly(self.path):
                model, found = getattr(transformers, name).from_pretrained(
                    self.path,
                    local_files_only=True,
                    use_safetensors=True,
                    variant=self.variant or None,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
            # A sentence encoder may come without the classifier's pooler, which nothing here reads.
            lost = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
            lost += sorted(str(key) for key in found["mismatched_keys"])
            if lost:
                raise UserError(f"{self.path}: its weights do not fit its config.json, {lost[0]} first")
            module: nn.Module = model.eval().requires_grad_(False)
            self._model = module
        return self._model.to(device)

    def _weight_files(self) -> WeightFiles:
        if (found := weight_files(self.path, "model")) is not None:
            return found
        pickled = any(self.path.glob("*.bin"))
        hint = "; pickled weights are not read, save it again as safetensors" if pickled else ""
        raise UserError(_lacks(self.path, _WEIGHTS) + hint)

    def _tokenizer_files(self) -> tuple[Path, list[Path]]:
        """The folder of the tokenizer and its files; in diffusers' layout it lies beside the encoder's."""
        beside = self.path.with_name(self.path.name.replace("text_encoder", "tokenizer"))
        for folder in (self.path, beside):
            for group in _TOKENIZERS:
                if all((folder / name).is_file() for name in group):
                    files = [folder / name for name in (*group, *_SETTINGS)]
                    return folder, [file for file in files if file.is_file()]
        raise UserError(_lacks(self.path, _TOKENIZERS[0][0]))


def _lacks(folder: Path, name: str) -> str:
    there = sorted(p.name for p in folder.iterdir())
    listed = ", ".join(there[:12]) + (", …" if len(there) > 12 else "")
    return f"{folder} lacks {name} (it has: {listed or 'nothing'})"


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of a file, or of several files' hashes."""
    found = []
    for file in files:
        status = file.stat()
        found.append(_file_hash(file, status.st_size, status.st_mtime_ns))
    return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()


@lru_cache(maxsize=64)
def _file_hash(file: Path, size: int, modified: int) -> str:
    """Read once, as long as size and time of change stay what they are."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def _quietly(folder: Path) -> Iterator[None]:
    """The library's own progress bars and tables are off; what it cannot read becomes one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{folder} cannot be read: {one_line(error)}") from None
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
