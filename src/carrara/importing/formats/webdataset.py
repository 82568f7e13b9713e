"""WebDataset: tars in which files of one name and several suffixes are a sample, as img2dataset writes them."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from carrara.dataset.columns import KINDS, LANGUAGE, UNSTATED
from carrara.dataset.picture_columns import Beside
from carrara.errors import UserError
from carrara.images.header import SUFFIXES
from carrara.importing.archives import PLAIN, TARS, Entry, kept_tar, stream_tar
from carrara.importing.caption_files import MAX_TEXT, as_text
from carrara.importing.column_names import Words, json_row, row_words
from carrara.importing.file import File
from carrara.importing.file_listing import any_below, below, deep, digest_of, hidden
from carrara.importing.options import Options
from carrara.importing.row import Rejected, Row, Survey
from carrara.importing.splits import splits_of
from carrara.text import nfc, printable, tidy

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
        # Headers are passed over quickly; what is compressed has to be unpacked for them.
        most = None if path.name.lower().endswith(PLAIN) else _LOOKED_AT
        marked, pictured = set[int](), set[int]()
        for entry in itertools.islice(stream_tar(path), most):
            key, suffix = _parted(entry.name) if isinstance(entry, Entry) else ("", "")
            if suffix == "json" or suffix in CLASSES:
                marked.add(hash(key))
            elif suffix in PICTURES:
                pictured.add(hash(key))
            if hash(key) in marked and hash(key) in pictured:
                return True
    return False


def survey(source: str, options: Options) -> Survey:
    """Counts the samples with a picture; the digest is of the shards' names, sizes and times."""
    root = Path(source)
    digest = digest_of(root, shards(root), repr(options.licence))
    if not (total := sum(_overview(shard).pictures for shard in shards(root))):
        raise UserError(f"no pictures found in {source} (looked for {', '.join(PICTURES)} in samples)")
    return Survey(total, digest)


def rows(source: str, options: Options, splits: Mapping[str, str] | None = None) -> Iterator[Row | Rejected]:
    """A row per sample with a picture, in the shards' natural order and each shard's own.

    The split is what ``splits`` says of the shard, whose names do if it is None.
    """
    root, all_shards = Path(source), shards(Path(source))
    splits = splits_of(below(root, shard) for shard in all_shards) if splits is None else splits
    for shard in all_shards:
        name = printable(below(root, shard))
        split = splits.get(below(root, shard))
        unread: dict[str, str] = {}  # the first of each suffix that is none of ours
        for found in _samples(shard, unread):
            if isinstance(found, Rejected):
                yield Rejected(_inside(name, found.source), found.reason)
                continue
            faults, row = _row(found, name, split, options)
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


class _Overview(NamedTuple):
    """How many samples of a shard have a picture, and whether the files of each stand together."""

    pictures: int
    in_order: bool


def _overview(shard: Path) -> _Overview:
    about = shard.stat()
    return _looked_over(shard, about.st_size, about.st_mtime_ns)


@functools.cache
def _looked_over(shard: Path, size: int, changed: int) -> _Overview:
    """What the names in a shard say; while it stays as it is, nobody needs to ask again."""
    keys, pictured, before = array("q"), array("q"), None
    for entry in stream_tar(shard):
        if isinstance(entry, Entry) and not hidden(entry.name):
            key, suffix = _parted(entry.name)
            if key != before:
                keys.append(hash(key))
            if suffix in PICTURES or (
                suffix.rpartition(".")[2] in PICTURES and suffix.partition(".")[0] not in KINDS
            ):
                pictured.append(hash(key))
            before = key
    return _Overview(len(set(pictured)), len(set(keys)) == len(keys))


def _samples(shard: Path, unread: dict[str, str]) -> Iterator[Sample | Rejected]:
    """The samples in the order of their first files."""
    lasting = shard.name.lower().endswith(PLAIN)
    if not _overview(shard).in_order:
        yield from _gathered(shard, unread)
        return
    sample: Sample | None = None
    for entry in stream_tar(shard):
        if isinstance(entry, Rejected):
            yield entry
        elif hidden(entry.name):
            yield Rejected(printable(entry.name), "hidden")
        else:
            if sample is None or _parted(entry.name)[0] != sample.key:
                if sample is not None:
                    yield sample
                sample = Sample(_parted(entry.name)[0])
            _take(sample, entry, unread, lasting=lasting)
    if sample is not None:
        yield sample


def _gathered(shard: Path, unread: dict[str, str]) -> Iterator[Sample | Rejected]:
    """The same where the files of a sample stand apart: by their keys, all names of the shard being in memory."""
    entries: dict[str, list[Entry]] = {}
    for found in kept_tar(shard):
        if isinstance(found, Rejected):
            yield found
        elif hidden(found.name):
            yield Rejected(printable(found.name), "hidden")
        else:
            entries.setdefault(_parted(found.name)[0], []).append(found)
    for key, files in entries.items():
        sample = Sample(key)
        for entry in files:
            _take(sample, entry, unread, lasting=True)
        yield sample


def _take(sample: Sample, entry: Entry, unread: dict[str, str], *, lasting: bool) -> None:
    """Adds a file to its sample, if none of its kind is there yet; ``lasting`` ones can be read later."""
    suffix = _parted(entry.name)[1]
    first, _, last = suffix.rpartition(".")
    second = False
    try:
        if last in PICTURES:
            file = entry.file if lasting else _held(entry.file)
            if first in KINDS:
                second = sample.beside.setdefault(first, (entry.name, file))[1] is not file
            elif not (second := sample.picture is not None):
                sample.picture = (entry.name, file)
        elif last in (*_TEXTS, *CLASSES, "json"):
            if entry.file.size > MAX_TEXT:
                raise ValueError(f"more than {MAX_TEXT} bytes")
            text = as_text(entry.file.read())
            second = sample.said.setdefault(suffix, text) is not text
        else:
            unread.setdefault(printable(suffix)[:40], printable(entry.name))
    except (OSError, ValueError) as error:
        sample.faults.append(Rejected(printable(entry.name), f"cannot be read: {error}"))
    if second:
        kind = "picture" if last in PICTURES else f".{suffix}"
        sample.faults.append(Rejected(printable(entry.name), f"a second {kind} of its sample, not taken"))


def _held(file: File) -> File:
    """A file that is read now, because it cannot be read later."""
    data = file.read()
    return File(file.size, file.stamp, partial(io.BytesIO, data))


def _row(
    sample: Sample, shard: str, split: str | None, options: Options
) -> tuple[list[Rejected], Row | None]:
    if sample.picture is None:
        said = "" if sample.faults else "a sample without a picture"
        return ([Rejected(printable(sample.key), said)] if said else []), None
    name, file = sample.picture
    words, faults = Words(split=split), []
    # What is said last goes before; of the same kind, what stands first.
    for suffix, text in sorted(reversed(sample.said.items()), key=lambda item: _weight(item[0])):
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


def _weight(suffix: str) -> int:
    """What goes before: boxes of their own, then texts, then ``.json``, which names the class that ``.cls`` numbers."""
    last = suffix.rpartition(".")[2]
    return 3 if suffix == "boxes.json" else 2 if last in _TEXTS else 1 if last == "json" else 0


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
    caption = tidy(text)
    return Words({language: caption} if caption else {})


def _parted(name: str) -> tuple[str, str]:
    """(key, suffixes) of a path in a tar, composed: the key ends at the first dot of the file's name."""
    folder, slash, last = nfc(name).rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def _inside(shard: str, name: str) -> str:
    return f"{shard}:{name}"
