"""Captions from a captioner of the user's own, a model on this machine, or a sentence with columns in it.

What is made is written down after every batch, so that nothing is lost when a captioner fails at picture 700; the
table gets it all at the end, and remembers who said it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import string
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from carrara.data.amend import amend
from carrara.data.keep.neighbours import Index
from carrara.data.pictures import decode
from carrara.data.rows import CAPTIONED_BY, BadPicture, caption_column, tidy
from carrara.data.store import lock, release
from carrara.errors import UserError, nearest

if TYPE_CHECKING:
    from PIL import Image

    from carrara.data.table import Dataset

_FOLDER = "caption.partial"
_JOURNAL = "captions.jsonl"
_SPELT = re.compile(r"[^\w.+-]+")


class Captioner(Protocol):
    """Something that names pictures; ``name`` is remembered with each caption, without spaces."""

    @property
    def name(self) -> str: ...

    def caption(self, rows: Index) -> list[str | None]: ...


class Progress(NamedTuple):
    """Rows done of how many; ``kept`` captions are new, ``empty`` are pictures that got none."""

    done: int
    total: int
    kept: int
    empty: int


class Stopped(UserError):
    """The captioner failed; the captions before are in the table."""


@dataclass(frozen=True)
class OfPictures:
    """A captioner that looks: ``name_them`` takes pictures in RGB."""

    dataset: Dataset
    name: str
    name_them: Any

    def caption(self, rows: Index) -> list[str | None]:
        """One text a picture; None for a picture that can no longer be read."""
        pictures: list[Image.Image] = []
        readable = []
        for k, data in enumerate(self.dataset.take(rows, ["image"])["image"]):
            try:
                pictures.append(decode(data, channels=3))
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
        from carrara.data.condition import nameable

        try:
            fields = [
                (name, spec, how)
                for _, name, spec, how in string.Formatter().parse(sentence)
                if name is not None
            ]
        except ValueError as error:
            raise UserError(f"the sentence {sentence!r} cannot be read: {error}") from None
        known = nameable(dataset.table.schema)
        for name, spec, how in fields:
            if name not in known:
                raise UserError(
                    f"{dataset.path} has no column {name!r} for the sentence{nearest(name, known)}"
                )
            if spec or how:
                raise UserError(f"in the sentence {sentence!r}, expected a column's name alone in braces")
        if not fields:
            raise UserError(f"the sentence {sentence!r} names no column in braces, like {{label}}")
        self._dataset, self._sentence = dataset, sentence
        self._columns = list(dict.fromkeys(name for name, _, _ in fields))
        self.name = "columns"

    def caption(self, rows: Index) -> list[str | None]:
        """The sentence with each row's values."""
        taken = self._dataset.take(rows, self._columns)
        lines = zip(*(taken[name] for name in self._columns), strict=True)
        return [
            None if None in values else self._sentence.format(**dict(zip(self._columns, values, strict=True)))
            for values in lines
        ]


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
                from carrara.data.table import nearest_path

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
            f"{place} cannot be used as a captioner: {type(error).__name__}: {_line(error)}"
        ) from None
    function = getattr(module, "caption", None)
    if not callable(function):
        raise UserError(f"{place} has no function caption(images), which gives a list of texts")
    return OfPictures(dataset, spelt(path.stem if path.suffix == ".py" else place), function)


def to_name(dataset: Dataset, language: str, *, every: bool) -> Index:
    """The rows to be captioned: those without a caption in this language, or all."""
    column = caption_column(language)
    return dataset.indices(None, None if every or column not in dataset.columns else f"{column} IS NULL")


def caption(
    dataset: Dataset, captioner: Captioner, rows: Index, language: str, *, batch: int = 16
) -> Generator[Progress, None, Progress]:
    """Names ``rows`` in ``language``, and writes it into the table in one version; yields and returns how far it is.

    Started again after a kill it goes on after the last batch. Stopped where the captioner fails, with all that
    it said before in the table; UserError where another process captions the same data set.
    """
    dataset.check_newest("be captioned")
    folder = dataset.store.work / _FOLDER
    held = lock(folder, make=True, doing=f"captioning {dataset.path}")
    try:
        journal = _Journal(folder / _JOURNAL, {"by": captioner.name, "language": language})
        ids = dataset.take(rows, ["id"])["id"] if len(rows) else []
        left = [k for k, known in enumerate(ids) if known not in journal.texts]
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
                first, last = rows[part[0]], rows[part[-1]]
                where = f"row {first}" if first == last else f"rows {first} to {last}"
                raise Stopped(
                    f"{captioner.name} failed at {where}: {type(error).__name__}: {_line(error)}; the "
                    f"{len(journal.made())} captions before are kept, and the same command goes on"
                ) from error
            journal.add({ids[k]: tidy(text) for k, text in zip(part, texts, strict=True)})
            done += len(part)
            yield _progress(journal, done, len(rows))
        _keep(dataset, captioner, rows, ids, journal, language)
        return _progress(journal, done, len(rows))
    finally:
        release(held)


def _keep(
    dataset: Dataset, captioner: Captioner, rows: Index, ids: Sequence[str], journal: _Journal, language: str
) -> None:
    """Writes what the journal holds into the table, and forgets the journal."""
    made = journal.made()
    texts = {int(row): made[known] for row, known in zip(rows, ids, strict=True) if known in made}
    if texts:
        dataset.refresh()  # others may have added pictures meanwhile; a row keeps its number
        there = list(texts)
        before = (
            dataset.take(there, [CAPTIONED_BY])[CAPTIONED_BY]
            if CAPTIONED_BY in dataset.columns
            else [None] * len(there)
        )
        said = {
            row: " ".join(sorted([*_others(old, language), f"{language}:{captioner.name}"]))
            for row, old in zip(there, before, strict=True)
        }
        amend(dataset, {caption_column(language): texts, CAPTIONED_BY: said})
    journal.path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        journal.path.parent.rmdir()


def _others(words: str | None, language: str) -> list[str]:
    return [word for word in (words or "").split() if not word.startswith(f"{language}:")]


class _Journal:
    """The captions so far, a line each: whole lines only are believed, and only those of this captioner."""

    def __init__(self, path: Path, about: dict[str, str]) -> None:
        self.path, self.texts = path, dict[str, str | None]()
        lines = _lines(path)
        if lines[:1] == [about]:
            for line in lines[1:]:
                self.texts[line["id"]] = line["text"]
        else:
            path.unlink(missing_ok=True)
        part = path.with_suffix(".part")  # written again, so that a torn last line is gone
        told = [about, *({"id": known, "text": text} for known, text in self.texts.items())]
        part.write_text("".join(json.dumps(line) + "\n" for line in told), encoding="utf-8")
        os.replace(part, path)

    def add(self, texts: dict[str, str | None]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(
                "".join(json.dumps({"id": known, "text": text}) + "\n" for known, text in texts.items())
            )
            file.flush()
            os.fsync(file.fileno())
        self.texts |= texts

    def made(self) -> dict[str, str]:
        return {known: text for known, text in self.texts.items() if text is not None}


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _progress(journal: _Journal, done: int, total: int) -> Progress:
    kept = len(journal.made())
    return Progress(done, total, kept, len(journal.texts) - kept)


def spelt(name: str) -> str:
    """A captioner's name as one word."""
    return _SPELT.sub("-", name) or "captioner"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or "without a word"
