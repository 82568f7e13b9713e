"""Captions from a captioner of the user's own, a model on this machine, or a sentence with columns in it.

What is made is written down after every batch, so that nothing is lost when a captioner fails at picture 700; the
table gets it all at the end, and remembers who said it.

A captioner that others trained, from a folder on this machine in the form of transformers (BLIP and its like).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from carrara import progress
from carrara.dataset.columns import CAPTIONED_BY, caption_column
from carrara.dataset.sentence import BY, Sentence
from carrara.dataset.store import lock, release
from carrara.dataset.word_changes import amend
from carrara.errors import BadPicture, UserError, one_line
from carrara.files import Journal
from carrara.images.decode import decode
from carrara.text import tidy

if TYPE_CHECKING:
    from PIL import Image

    from carrara.dataset.dataset import Dataset
    from carrara.tensors import Index


_FOLDER = "caption.partial"
_SPELT = re.compile(r"[^\w.+-]+")


class Captioner(Protocol):
    """Something that names pictures; ``name`` is remembered with each caption, without spaces, and ``key`` is another
    one where it may say something else."""

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str: ...

    def caption(self, rows: Index) -> list[str | None]: ...


@dataclass(frozen=True, kw_only=True)
class Progress(progress.Progress):
    """Rows done of how many; ``kept`` captions are new, ``empty`` are pictures that got none, and ``overtaken`` those
    that somebody else named meanwhile, whose words stay."""

    kept: int
    empty: int
    overtaken: int = 0


class Stopped(UserError):
    """The captioner failed; the captions before are in the table."""


@dataclass(frozen=True)
class OfPictures:
    """A captioner that looks: ``name_them`` takes pictures in RGB."""

    dataset: Dataset
    name: str
    key: str
    name_them: Any

    def caption(self, rows: Index) -> list[str | None]:
        """One text a picture; None for a picture that can no longer be read."""
        pictures: list[Image.Image] = []
        readable = []
        for k, data in enumerate(self.dataset.take(rows, ["image"])["image"]):
            try:
                pictures.append(decode(data, channels=3, span=self.dataset.span("image")))
                readable.append(k)
            except BadPicture:
                continue
        said = self.name_them(pictures) if pictures else []
        if not isinstance(said, Sequence) or isinstance(said, str) or len(said) != len(pictures):
            got = f"{len(said)} texts" if isinstance(said, list | tuple) else f"a {type(said).__name__}"
            raise ValueError(f"it gave {got} for {len(pictures)} pictures; expected a list of as many texts")
        texts: list[str | None] = [None] * len(rows)
        for k, text in zip(readable, said, strict=True):
            if text is not None and not isinstance(text, str):
                raise ValueError(f"it gave a {type(text).__name__} as a caption; expected a text")
            texts[k] = text
        return texts


class OfColumns:
    """A sentence with columns in braces, "a picture of {label}"; a row that lacks one of them gets none."""

    def __init__(self, dataset: Dataset, sentence: str) -> None:
        from carrara.dataset.sql_condition import nameable

        self._dataset = dataset
        self._sentence = Sentence(sentence, nameable(dataset.table.schema), dataset.path)
        self.name, self.key = BY, sentence

    def caption(self, rows: Index) -> list[str | None]:
        """The sentence with each row's values."""
        columns = self._sentence.columns
        taken = self._dataset.take(rows, columns)
        lines = zip(*(taken[name] for name in columns), strict=True)
        return [self._sentence.filled(dict(zip(columns, values, strict=True))) for values in lines]


def from_python(dataset: Dataset, place: str) -> OfPictures:
    """The function ``caption`` of a Python file or an installed module: pictures in, a list of texts out.

    It is the user's own program, run with all that the user may do.
    """
    import importlib
    import importlib.util

    path = Path(place)
    try:
        if path.suffix == ".py":
            if not path.is_file():
                from carrara.dataset.dataset import nearest_path

                raise UserError(f"there is no file {place}{nearest_path(path)}")
            spec = importlib.util.spec_from_file_location(f"captioner_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except UserError:
        raise
    except Exception as error:  # whatever the user's program does while it is read
        raise UserError(
            f"{place} cannot be used as a captioner: {type(error).__name__}: {one_line(error)}"
        ) from None
    function = getattr(module, "caption", None)
    if not callable(function):
        raise UserError(f"{place} has no function caption(images), which gives a list of texts")
    source = Path(getattr(module, "__file__", None) or place)
    key = hashlib.sha256(source.read_bytes() if source.is_file() else place.encode()).hexdigest()
    return OfPictures(dataset, spelt(path.stem if path.suffix == ".py" else place), key, function)


def to_name(dataset: Dataset, language: str, *, every: bool) -> Index:
    """The rows to be captioned: those without a caption in this language, or all."""
    column = caption_column(language)
    return dataset.indices(None, None if every or column not in dataset.columns else f"{column} IS NULL")


def caption(
    dataset: Dataset, captioner: Captioner, rows: Index, language: str, *, batch: int = 16
) -> Generator[Progress, None, Progress]:
    """Names ``rows`` in ``language``, and writes it into the table in one version; yields how far it is, which it
    returns in the end.

    Started again after a kill, or after the captioner failed, it goes on after the last batch. A row whose caption is
    no longer the one that it had when it was named keeps what it has. Stopped where the captioner fails, with all
    that it said before in the table; UserError where another process captions the same data set.
    """
    dataset.check_newest("be captioned")
    folder = dataset.store.work / _FOLDER
    held = lock(folder, make=True, doing=f"captioning {dataset.path}")
    try:
        journal = _Journal(folder, {"by": captioner.name, "language": language, "key": captioner.key})
        ids = dataset.take(rows, ["id"])["id"] if len(rows) else []
        left = [k for k, known in enumerate(ids) if known not in journal.said]
        done = len(rows) - len(left)
        yield _progress(journal, done, len(rows))
        for start in range(0, len(left), batch):
            part = left[start : start + batch]
            try:
                texts = captioner.caption(rows[part])
            except (
                Exception
            ) as error:  # the captioner is not ours: whatever it raises ends this, and loses nothing
                _keep(dataset, captioner, rows, ids, journal, language)
                count = journal.named
                journal.add({}, kept=True)
                first, final = rows[part[0]], rows[part[-1]]
                where = f"row {first}" if first == final else f"rows {first} to {final}"
                raise Stopped(
                    f"{captioner.name} failed at {where}: {type(error).__name__}: {one_line(error)}; the "
                    f"{count} captions before are kept, and the same command goes on"
                ) from error
            before = _captions(dataset, rows[part], language)
            journal.add(
                {ids[k]: Said(tidy(text), was) for k, text, was in zip(part, texts, before, strict=True)}
            )
            done += len(part)
            yield _progress(journal, done, len(rows))
        overtaken = _keep(dataset, captioner, rows, ids, journal, language)
        journal.forget()
        last = _progress(journal, done, len(rows))
        last = replace(last, kept=last.kept - overtaken, overtaken=overtaken)
        yield last
        return last
    finally:
        release(held)


def _captions(dataset: Dataset, rows: Sequence[int] | Index, language: str) -> list[str | None]:
    column = caption_column(language)
    found: list[str | None] = [None] * len(rows)
    return dataset.take(rows, [column])[column] if column in dataset.columns and len(rows) else found


def _keep(
    dataset: Dataset, captioner: Captioner, rows: Index, ids: Sequence[str], journal: _Journal, language: str
) -> int:
    """Writes what the journal holds into the table, and returns how many were overtaken by others' words."""
    made, column = journal.made(), caption_column(language)
    told = {int(row): made[known] for row, known in zip(rows, ids, strict=True) if known in made}
    if not told:
        return 0
    dataset.refresh()  # others may have added pictures meanwhile; a row keeps its number
    there = list(told)
    before = (
        dataset.take(there, [CAPTIONED_BY])[CAPTIONED_BY]
        if CAPTIONED_BY in dataset.columns
        else [None] * len(there)
    )
    by = {
        row: " ".join(sorted([*_others(old, language), f"{language}:{captioner.name}"]))
        for row, old in zip(there, before, strict=True)
    }
    texts = {row: said.text for row, said in told.items()}
    amend(
        dataset,
        {column: texts, CAPTIONED_BY: by},
        was={column: {row: said.was for row, said in told.items()}},
    )
    return sum(now != texts[row] for row, now in zip(there, _captions(dataset, there, language), strict=True))


def _others(words: str | None, language: str) -> list[str]:
    return [word for word in (words or "").split() if not word.startswith(f"{language}:")]


class Said(NamedTuple):
    """What a captioner said of a picture, None for nothing, and the caption that it had then."""

    text: str | None
    was: str | None


class _Journal:
    """The captions so far, a line a batch: whole lines only are believed. Every captioner has one of its own."""

    def __init__(self, folder: Path, about: dict[str, str]) -> None:
        self.said = dict[str, Said]()
        self.new = dict[str, Said]()  # what was said since the table got all
        self.named = 0  # of those, the ones that got a caption
        name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        self._journal = Journal(folder / f"{name}.jsonl")
        for line in self._journal:
            self._hear({known: Said(*told) for known, told in line["said"].items()}, kept=line["kept"])

    def add(self, said: dict[str, Said], *, kept: bool = False) -> None:
        """Notes what was said, or that the table has all that was said before."""
        self._journal.add({"said": said, "kept": kept})
        self._hear(said, kept=kept)

    def _hear(self, said: dict[str, Said], *, kept: bool) -> None:
        self.said |= said
        self.new |= said
        self.named += sum(told.text is not None for told in said.values())
        if kept:
            self.new, self.named = {}, 0

    def made(self) -> dict[str, Said]:
        """The captions that the table has not yet."""
        return {known: told for known, told in self.new.items() if told.text is not None}

    def forget(self) -> None:
        """All is in the table."""
        self._journal.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other captioners have theirs there
            self._journal.path.parent.rmdir()


def _progress(journal: _Journal, done: int, total: int) -> Progress:
    kept, title = journal.named, "captioning" if total else ""
    empty = len(journal.new) - kept
    return Progress.of(done, total, f"{kept} captioned", title=title, kept=kept, empty=empty)


def spelt(name: str) -> str:
    """A captioner's name as one word."""
    return _SPELT.sub("-", name) or "captioner"


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
        raise UserError(f"{folder} cannot be read as a captioner: {one_line(error)}") from None
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
