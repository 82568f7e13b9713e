"""WebDataset: tars in which files of one name and several suffixes are a sample, as img2dataset writes them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from carrara.data.archives import TARS, Entry, stream_tar
from carrara.data.beside import KINDS, Beside
from carrara.data.captions import MAX_TEXT, as_text
from carrara.data.files import File, any_below, below, deep, hidden, printable
from carrara.data.importing import Options
from carrara.data.pictures import SUFFIXES
from carrara.data.rows import UNSTATED, Rejected, Row, Survey
from carrara.data.words import LANGUAGE, Words, json_row, row_words, split_named
from carrara.errors import UserError

PICTURES = tuple(suffix[1:] for suffix in SUFFIXES)
CLASSES = ("cls", "class", "label")
_TEXTS = ("txt", "text", "caption")
_LOOKED_AT = 64  # entries of a tar by which a lone one is known


@dataclass
class Sample:
    """The files of one key, which stand one after the other."""

    key: str
    picture: tuple[str, File] | None = None
    beside: dict[str, tuple[str, File]] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)  # by suffix
    faults: list[Rejected] = field(default_factory=list)


def matches(source: str) -> bool:
    """The source is a folder with tars and no pictures in or below it, or a tar whose pictures have ``.json`` or
    ``.cls`` of the same name."""
    path = Path(source)
    if path.is_dir():
        return not any_below(path, SUFFIXES) and bool(shards(path))
    if not path.is_file() or not path.name.lower().endswith(TARS):
        return False
    with contextlib.suppress(UserError, OSError):
        entries = (e for e in itertools.islice(stream_tar(path), _LOOKED_AT) if isinstance(e, Entry))
        suffixes: dict[str, set[str]] = {}
        for key, suffix in (_parted(e.name) for e in entries):
            suffixes.setdefault(key, set()).add(suffix)
        marks = {"json", *CLASSES}
        return any(found & marks and found & {*PICTURES} for found in suffixes.values())
    return False


def survey(source: str, options: Options) -> Survey:
    """Counts the samples with a picture; the digest is of the shards' names, sizes and times."""
    total, digest = 0, hashlib.sha256(repr(options.licence).encode())
    root = Path(source)
    for shard in shards(root):
        about = shard.stat()
        digest.update(f"{below(root, shard)!r} {about.st_size} {about.st_mtime_ns}\n".encode())
        keys = (_parted(e.name) for e in stream_tar(shard) if isinstance(e, Entry))
        for _, group in itertools.groupby(keys, key=lambda parted: parted[0]):
            total += any(suffix.rpartition(".")[2] in PICTURES for _, suffix in group)
    if not total:
        raise UserError(f"no pictures found in {source} (looked for {', '.join(PICTURES)} in samples)")
    return Survey(total, digest.hexdigest())


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """A row per sample with a picture, in the shards' natural order and each shard's own."""
    root = Path(source)
    for shard in shards(root):
        name = printable(below(root, shard))
        unread: dict[str, str] = {}  # the first of each suffix that is none of ours
        for found in _samples(shard, unread):
            if isinstance(found, Rejected):
                yield Rejected(_inside(name, found.source), found.reason)
                continue
            faults, row = _row(found, name, options)
            for bad in (*found.faults, *faults):
                yield Rejected(_inside(name, bad.source), bad.reason)
            if row is not None:
                yield row
        for suffix, first in unread.items():
            yield Rejected(name, f"entries .{suffix} are not read (the first: {first})")


def shards(path: Path) -> list[Path]:
    """The tars of a source in natural order."""
    if path.is_file():
        return [path]
    return deep(path, TARS)


def _samples(shard: Path, unread: dict[str, str]) -> Iterator[Sample | Rejected]:
    sample: Sample | None = None
    for entry in stream_tar(shard):
        if isinstance(entry, Rejected):
            yield entry
            continue
        key, suffix = _parted(entry.name)
        if hidden(entry.name):
            yield Rejected(printable(entry.name), "hidden")
            continue
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = Sample(key)
        if not _take(sample, entry, suffix, lasting=shard.suffix.lower() == ".tar"):
            unread.setdefault(printable(suffix)[:40], printable(entry.name))
    if sample is not None:
        yield sample


def _take(sample: Sample, entry: Entry, suffix: str, *, lasting: bool) -> bool:
    """Adds a file to its sample; False where it is none that is read."""
    first, _, last = suffix.rpartition(".")
    try:
        if last in PICTURES:
            file = entry.file if lasting else _held(entry.file)
            if first in KINDS and first not in sample.beside:
                sample.beside[first] = (entry.name, file)
            elif first not in KINDS and sample.picture is None:
                sample.picture = (entry.name, file)
            else:
                sample.faults.append(
                    Rejected(printable(entry.name), "a second picture of its sample, not taken")
                )
        elif last in (*_TEXTS, *CLASSES, "json"):
            if entry.file.size > MAX_TEXT:
                raise ValueError(f"more than {MAX_TEXT} bytes")
            sample.said[suffix] = as_text(entry.file.read())
        else:
            return False
    except (OSError, ValueError) as error:
        sample.faults.append(Rejected(printable(entry.name), f"cannot be read: {error}"))
    return True


def _held(file: File) -> File:
    """A file that is read now, because it cannot be read later."""
    data = file.read()
    return File(file.size, file.stamp, partial(io.BytesIO, data))


def _row(sample: Sample, shard: str, options: Options) -> tuple[list[Rejected], Row | None]:
    if sample.picture is None:
        said = "" if sample.faults else "a sample without a picture"
        return ([Rejected(printable(sample.key), said)] if said else []), None
    name, file = sample.picture
    words, faults = Words(split=split_named(shard)), []
    # The weakest first; of a text that stands in several of them one is kept.
    for suffix, text in sorted(sample.said.items(), key=lambda item: item[0].endswith("json")):
        try:
            words = _words(suffix, text).over(words)
        except (ValueError, UserError) as error:
            faults.append(
                Rejected(printable(f"{sample.key}.{suffix}"), f"words that cannot be read: {error}")
            )
    row = Row(
        source=_inside(shard, printable(name)),
        read=file.read,
        beside={
            kind: Beside(_inside(shard, printable(inside)), of.read)
            for kind, (inside, of) in sample.beside.items()
        },
        **words.told(options.licence),
    )
    return faults, row


def _words(suffix: str, text: str) -> Words:
    """What a file of a sample says."""
    first, _, last = suffix.rpartition(".")
    if suffix == "boxes.json":
        return Words(boxes=text)
    if last == "json":
        row = json_row(text)
        label = next(
            (v for n in ("label", "class_name", "class", "cls") if (v := row.get(n)) is not None), None
        )
        return replace(row_words(row, "it"), label=(label and label.strip()) or None)
    if last in CLASSES:
        return Words(label=text.strip() or None)
    language = first.lower().replace("_", "-") if LANGUAGE.fullmatch(first) else UNSTATED
    return Words({language: text.strip()} if text.strip() else {})


def _parted(name: str) -> tuple[str, str]:
    """(key, suffixes) of a path in a tar: the key ends at the first dot of the file's name."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def _inside(shard: str, name: str) -> str:
    return f"{shard}:{name}"
