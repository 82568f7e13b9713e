"""Text, learned from scratch with the denoiser: byte-level BPE from your captions, a small transformer over it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from carrara.conditions.condition import Columns, Derivation, Form, Latent, dropped
from carrara.config import Config as Base
from carrara.config import check_memory
from carrara.context import Context
from carrara.errors import UserError
from carrara.geometry import Size
from carrara.layers import attend
from carrara.model_folder import check_hash
from carrara.tensors import sample_uniform

PAD, START = "<pad>", "<start>"
_TOKENIZER = "tokenizer.json"


class Config(Base):
    """A text encoder trained with the denoiser, in whatever languages the captions have."""

    kind: Literal["text"] = "text"
    languages: tuple[str, ...] = Field((), description="Languages trained on, e.g. en, de; none means all.")
    vocabulary: int = Field(
        8192, ge=258, description="Tokens learned from the captions; bytes are always known."
    )
    length: int = Field(32, ge=2, description="Longest caption in tokens; longer ones are cut, and counted.")
    width: int = Field(256, ge=8, description="Width of the tokens.")
    depth: int = Field(2, ge=1, description="Transformer layers.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    causal: bool = Field(
        False, description="Read as CLIP does, each word after those before it, padding too: for diffusers."
    )
    dropout: float = Field(0.1, ge=0, le=1, description="Share of pictures trained without their caption.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, no multiple of {self.heads} heads")
        check_memory(self.vocabulary * self.width + 12 * self.depth * self.width**2)
        return self

    def reads(self, data: Columns) -> list[str]:
        """The caption columns to draw from; an empty list where there are no captions.

        UserError where a language is asked for that no caption has.
        """
        captions = data.captions
        unknown = [language for language in self.languages if language not in captions]
        if unknown and captions:
            known = ", ".join(sorted(captions))
            raise UserError(f"the data has no captions in {', '.join(map(repr, unknown))} (it has: {known})")
        return [
            captions[language] for language in (self.languages or sorted(captions)) if language in captions
        ]

    def learn(self, data: Columns, latent: Latent | None = None) -> TextEncoder:
        """A new encoder whose tokens are learned from the captions to train on."""
        captions = (text for column in self.reads(data) for text in data.values(column) if text)
        return TextEncoder(self, learn_tokenizer(captions, self.vocabulary))

    def restore(self, folder: Path, latent: Latent | None = None) -> TextEncoder:
        """The encoder with the tokenizer that a model folder keeps; its weights are loaded afterwards."""
        file = folder / _TOKENIZER
        if not file.is_file():
            raise UserError(f"{folder.parent} is incomplete: it lacks {folder.name}/{_TOKENIZER}")
        check_hash(file)  # a damaged one may make the library panic
        try:
            return TextEncoder(self, Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{file} is damaged: {error}") from None


def learn_tokenizer(captions: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE over the captions: common words become one token, and no text is unknown to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


class Layer(nn.Module):
    """Self-attention and feed-forward, each normalised before and around a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``mask [b l]`` is True where there is a word; without it the places before each are read."""
        query, key, value = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(attend(query, key, value, self.heads, mask, causal=mask is None))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class TextEncoder(nn.Module):
    """ids [b l] -> Context(tokens [b l d], mask [b l], vector [b d]); the empty caption is the null.

    With ``causal`` there are tokens alone.
    """

    column = "caption"  # what it reads of a request
    form: Form = "text"
    image = None

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.tokens = config.width
        self.vector = None if config.causal else config.width
        self.embedding = nn.Embedding(tokenizer.get_vocab_size(), config.width)
        self.position = nn.Parameter(torch.randn(config.length, config.width) * 0.02)
        self.layers = nn.ModuleList(Layer(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def keep(self, folder: Path) -> None:
        """Writes what ``restore`` needs besides the weights."""
        folder.mkdir(parents=True)
        self.tokenizer.save(str(folder / _TOKENIZER))

    def derivations(self, columns: Sequence[str]) -> Sequence[Derivation]:
        """Nothing: what it makes of a caption changes while it learns."""
        return ()

    def draw(self, columns: Mapping[str, Any], seeds: Sequence[int], *, stream: int) -> list[str]:
        """One caption a picture, in one of its languages, and sometimes none: a function of seeds and stream."""
        choice = sample_uniform(seeds, stream=16 * stream + 1).tolist()
        without = dropped(seeds, self.config.dropout, stream=stream)
        written = [values for name, values in columns.items() if name.startswith("caption")]
        captions = []
        for index, (pick, drop) in enumerate(zip(choice, without, strict=True)):
            known = [values[index] for values in written if values[index]]
            captions.append("" if drop or not known else known[int(pick * len(known))])
        return captions

    def cut(self, caption: str) -> int:
        """How many of a caption's tokens lie beyond the window and are not read."""
        return max(0, 1 + len(self.tokenizer.encode(caption).ids) - self.config.length)

    def remarks(self, value: str | None) -> list[str]:
        """Says which words are beyond the window, and which letters no caption had."""
        prompt, found = value or "", []
        if cut := self.cut(prompt):
            found.append(
                f"the last {cut} tokens of the prompt are beyond the model's window and are not read"
            )
        known = set[str]().union(*(scripts(word) for word in self._words()))
        if strange := sorted(scripts(prompt) - known):
            names = ", ".join(script.capitalize() for script in strange)
            learned = ", ".join(self.config.languages) or "its captions"
            found.append(f"no caption was written in {names} letters; the model learned: {learned}")
        return found

    def _words(self) -> list[str]:
        """What each token stands for, as text; halves of characters are left out."""
        decoded = (self.tokenizer.decode([i]) for i in range(self.tokenizer.get_vocab_size()))
        return [word for word in decoded if "\ufffd" not in word]

    def prepare(self, captions: Sequence[str | None], size: Size | None = None) -> Tensor:
        """ids [b l], padded with zeros to the longest; no caption is the empty one."""
        start = self.tokenizer.token_to_id(START)
        rows = [
            [start, *e.ids][: self.config.length]
            for e in self.tokenizer.encode_batch([c or "" for c in captions])
        ]
        longest = self.config.length if self.config.causal else max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        return ids

    def forward(self, ids: Tensor) -> Context:
        mask = None if self.config.causal else ids != 0
        x = self.embedding(ids) + self.position[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        if mask is None:
            return Context(tokens=x)
        weights = mask / mask.sum(1, keepdim=True)
        return Context(tokens=x, mask=mask, vector=(x * weights[..., None]).sum(1))


_TOGETHER = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}
_MOST = 50_000  # letters of all different words that a model keeps


def known_words(captions: Iterable[str]) -> str | None:
    """Every different word of the captions, by the alphabet, spaces between; None where they are too many to keep."""
    found, size = set[str](), 0
    for caption in captions:
        new = set(_words(caption)) - found
        found |= new
        size += sum(len(word) + 1 for word in new)
        if size > _MOST:
            return None
    return " ".join(sorted(found))


def unseen_note(prompt: str, known: str) -> list[str]:
    """A sentence where words of the prompt are none of those that `known_words` found."""
    strange = list(dict.fromkeys(_words(prompt)))
    strange = sorted(set(strange) - set(known.split()), key=strange.index)
    if not strange:
        return []
    words = ", ".join(repr(word[:40]) for word in strange[:5])
    more = f" and {len(strange) - 5} more words" if len(strange) > 5 else ""
    stand = "stands" if len(strange) == 1 else "stand"
    return [f"{words}{more} {stand} in no caption that this model was trained on"]


def _words(text: str) -> list[str]:
    """In small letters; where a script has no spaces between its words, each sign is one."""
    text = unicodedata.normalize("NFKC", text).lower()
    whole = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()
    return [part for word in whole for part in (word if scripts(word) & _TOGETHER else [word])]


def scripts(text: str) -> set[str]:
    """The scripts of a text's letters, by the first word of their Unicode names: LATIN, CJK, ARABIC …"""
    return {unicodedata.name(c, "UNKNOWN").split()[0] for c in text if c.isalpha()}
