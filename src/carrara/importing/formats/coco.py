"""COCO's annotations: boxes with categories and several captions a picture, the pictures in folders beside."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carrara.dataset.columns import UNSTATED
from carrara.errors import UserError, one_line
from carrara.importing.annotations import Annotated
from carrara.importing.archives import unsafe
from carrara.importing.file import File
from carrara.importing.file_listing import below, digest_of, natural, on_disk
from carrara.importing.formats.folder import file_at
from carrara.importing.json_stream import members
from carrara.importing.options import Options
from carrara.importing.row import Rejected, Row, Survey
from carrara.importing.splits import splits_of
from carrara.importing.table_rows import NOT_UTF8, text_of
from carrara.text import printable, tidy

_NAMES = re.compile(r"(instances|captions)_?(.*)\.json|(_annotations)\.coco\.json")
_HEAD = 4096  # bytes by which a lone file is known
_LISTED, _CAPTION, _BOX, _LOST = "picture", "caption", "box", "lost"  # kinds of notes
_LARGEST = 1e9  # a side that a picture may be said to have


@dataclass
class Said:
    """What the annotations of one set (train2017 …) say of a picture."""

    name: str
    licence: str | None = None
    url: str | None = None
    sides: tuple[float, float] = (0.0, 0.0)
    captions: list[str] = field(default_factory=list)
    boxes: list[dict[str, Any]] | None = None  # None where no file with boxes knows the picture
    lost: bool = False  # whether an annotation of it that has a box cannot be used
    fault: str = ""  # why there is no picture


@dataclass
class Document:
    """One file of annotations: what its numbers mean, and how many of what it says cannot be used, and why."""

    name: str
    licences: dict[Any, str] = field(default_factory=dict)
    categories: dict[Any, str] = field(default_factory=dict)
    strange: Counter[str] = field(default_factory=Counter)
    second: dict[str, str] = field(default_factory=dict)  # pictures listed under the number of another


@dataclass
class Set:
    """The files that annotate the same pictures."""

    name: str
    folder: Path
    files: list[Path] = field(default_factory=list)


def matches(source: str) -> bool:
    """The source is a folder with COCO's files in it, in ``annotations`` or one below, or such a file."""
    return bool(_files(Path(source)))


def survey(source: str, options: Options) -> Survey:
    """Counts the annotated pictures; the digest is of the annotations' names, sizes and times."""
    digest = digest_of(Path(source), _files(Path(source)), repr(options.licence))
    total, first, found = 0, "", False
    for one in _sets(Path(source)):
        with closing(Annotated()) as annotated:
            _read(one, annotated, words=False)
            total += len(annotated)
            for name, _ in annotated.pictures():
                found = found or _picture(one, name) is not None
                first = first or f"; {name!r} is in none of {_places_shown(one)}"
                if found:
                    break
    if not found:
        raise UserError(f"none of the {total} pictures that {source} annotates is there{first}")
    return Survey(total, digest)


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """A row per picture, in the order of the annotations, the sets in natural order."""
    sets = _sets(Path(source))
    splits = splits_of({one.name for one in sets})
    for one in sets:
        with closing(Annotated()) as annotated:
            documents = _read(one, annotated, words=True)
            for number in annotated.unlisted():
                documents[number].strange["of pictures that it does not list"] += 1
            for name, notes in annotated.pictures():
                if notes:
                    yield from _row(one, _merged(name, notes, documents), splits.get(one.name), options)
            for document in documents:
                for name, first in document.second.items():
                    reason = f"not taken: {document.name} lists it under the id of {printable(first)!r}"
                    yield Rejected(f"{one.name}/{printable(name)}".lstrip("/"), reason)
                for reason, count in document.strange.items():
                    yield Rejected(document.name, f"{count} annotations that cannot be used: {reason}")


def _row(one: Set, said: Said, split: str | None, options: Options) -> Iterator[Row | Rejected]:
    name = f"{one.name}/{printable(said.name)}".lstrip("/")
    if reason := said.fault or unsafe(said.name):
        yield Rejected(name, reason)
    elif (found := _picture(one, said.name)) is None:
        yield Rejected(name, f"the picture is not there (looked in {_places_shown(one)})")
    else:
        faults, boxes = _boxes(said)
        yield from (Rejected(name, fault) for fault in faults)
        first, *more = said.captions or [""]
        yield Row(
            source=name,
            read=found.read,
            captions={UNSTATED: first} if first else {},
            split=split,
            licence=said.licence or options.licence,
            boxes=boxes,
            sides=said.sides,
            url=said.url,
            more=tuple(more),
        )


def _files(path: Path) -> list[Path]:
    """The annotation files of a source."""
    if path.is_file():
        known = path.suffix.lower() == ".json" and (
            _NAMES.fullmatch(path.name.lower()) or _looks_like_one(path)
        )
        return [path] if known else []
    if not path.is_dir():
        return []
    inside = [*path.glob("*.json"), *path.glob("*/*.json")]
    found = [p for p in inside if _NAMES.fullmatch(p.name.lower()) and _looks_like_one(p)]
    return sorted(found, key=lambda p: natural(below(path, p)))


def _looks_like_one(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            file.seek(max(0, path.stat().st_size - _HEAD))
            head += file.read(_HEAD)
    except OSError:
        return False
    head = head.replace(b"\0", b"")  # of UTF-16 and UTF-32
    return any(f'"{key}"'.encode() in head for key in ("images", "annotations", "categories"))


def _sets(source: Path) -> list[Set]:
    sets: dict[tuple[Path, str], Set] = {}
    for path in _files(source):
        named = _NAMES.fullmatch(path.name.lower())
        name = (named[2] or "") if named else path.stem
        if named and named[3]:  # the name of the set is that of the folder
            name = path.parent.name
        sets.setdefault((path.parent, name), Set(name, path.parent)).files.append(path)
    return list(sets.values())


def _read(one: Set, annotated: Annotated, *, words: bool) -> list[Document]:
    """Takes in the files of a set: the pictures that they list and, for the ``words``, what they say of each."""
    documents = []
    for number, path in enumerate(one.files):
        document = Document(path.name)
        documents.append(document)
        lists = set[str]()
        try:
            with text_of(open(path, "rb"), "strict") as file:
                for key, kind, value in members(file):
                    if kind == "list":
                        lists.add(key)
                    elif kind != "entry":
                        if key in ("images", "annotations"):
                            raise TypeError(f"its {key} are no list")
                    elif key == "images":
                        known_by, name = value["id"], _name(value)
                        if (first := annotated.list(number, known_by, name)) == name:
                            annotated.note(number, known_by, [_LISTED, *_listing(value)])
                        else:
                            document.second[name] = first
                    elif key == "licenses":
                        document.licences[value["id"]] = _text(value, "url", "name")
                    elif key == "categories":
                        if isinstance(category := value["name"], int | str):
                            document.categories[value["id"]] = str(category)
                    elif key == "annotations" and words:
                        _take(value, number, annotated, document)
            for key in ("images", "annotations"):
                if key not in lists:
                    raise KeyError(key)
        except UserError:
            raise
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
            reason = NOT_UTF8 if isinstance(error, UnicodeDecodeError) else reason
            raise UserError(f"{path} is not COCO's JSON: {reason[:200]}") from None
    return documents


def _name(image: dict[str, Any]) -> str:
    """What a list of pictures calls one: by its number where its name is no text, so that it is listed once."""
    return _text(image, "file_name") or f"id {json.dumps(image['id'])}"


def _listing(image: dict[str, Any]) -> tuple[Any, str, float, float, str]:
    """What else a list of pictures says of one, and at last what is wrong with its name."""
    sides = (image.get("width"), image.get("height"))
    stated = all(isinstance(side, int | float) and 0 < side < _LARGEST for side in sides)
    width, height = map(float, sides) if stated else (0.0, 0.0)  # type: ignore[arg-type]
    licence, url = image.get("license"), _text(image, "coco_url", "flickr_url")
    named = json.dumps(image.get("file_name"))[:80]
    fault = "" if _text(image, "file_name") else f"its file_name is {named}; expected the name of a file"
    return licence if isinstance(licence, int | str) else None, url, width, height, fault


def _text(entry: dict[str, Any], *names: str) -> str:
    """The first of these that is a text."""
    texts = (entry.get(name) for name in names)
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def _take(entry: Any, number: int, annotated: Annotated, document: Document) -> None:
    """Notes what an annotation says; what is no annotation is counted."""
    try:
        if "caption" in entry:
            if not isinstance(caption := entry["caption"], str):
                raise TypeError(f"a caption is {'null' if caption is None else type(caption).__name__}")
            if text := tidy(caption):
                annotated.note(number, entry["image_id"], [_CAPTION, text])
        if "bbox" in entry:
            left, top, width, height = (float(n) for n in entry["bbox"])
            if not all(map(math.isfinite, (left, top, width, height))):
                raise ValueError("a box whose numbers are not finite")
            if not isinstance(category := entry["category_id"], int | str):
                raise TypeError(f"a category is {type(category).__name__}")
            annotated.note(number, entry["image_id"], [_BOX, category, left, top, width, height])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        document.strange[what[:80]] += 1
        if isinstance(entry, dict) and "bbox" in entry and isinstance(entry.get("image_id"), int | str):
            annotated.note(number, entry["image_id"], [_LOST])


def _merged(name: str, notes: list[tuple[int, Any]], documents: list[Document]) -> Said:
    """What all files of a set say of a picture; a box of a category that its file does not name is counted."""
    said = Said(name, boxes=None)
    for number, (kind, *what) in notes:
        document = documents[number]
        if kind == _LISTED:
            licence, url, width, height, said.fault = what
            said.licence = said.licence or tidy(document.licences.get(licence))
            said.url = said.url or url or None
            said.sides = (width, height)
            if document.categories and said.boxes is None:
                said.boxes = []
    for number, (kind, *what) in notes:
        if kind == _CAPTION and what[0] not in said.captions:
            said.captions.append(what[0])
        elif kind == _BOX:
            category, *box = what
            if category not in documents[number].categories:
                documents[number].strange["of a category that it does not name"] += 1
                said.lost = True
            elif said.boxes is not None:
                said.boxes.append({"label": documents[number].categories[category], "box": box})
        said.lost |= kind == _LOST
    return said


def _boxes(said: Said) -> tuple[list[str], str | None]:
    """The boxes in pixels of the stated sides, and why others are none."""
    if said.boxes is None:
        return [], None
    width, height = said.sides
    if not (width > 0 and height > 0):
        return ["its width and height are not said, so its boxes cannot be used"], None
    good, faults = [], []
    for entry in said.boxes:
        left, top, across, down = entry["box"]
        # Of a picture that EXIF turns it may be that only the sides are those before.
        if across > 0 < down and left + across > 0 < top + down and max(left, top) < max(width, height):
            good.append(entry)
        else:
            faults.append(f"a box of {entry['label']!r} without area in the picture")
    nobody_knows = not good and (faults or said.lost)  # whether nothing is in it
    return faults, None if nobody_knows else json.dumps({"pixels": good})


def _picture(one: Set, name: str) -> File | None:
    if unsafe(name):
        return None
    for place in _places(one):
        try:
            path = on_disk(place, name)
            return file_at(path, os.stat(path))
        except (OSError, ValueError):
            continue
    return None


def _places(one: Set) -> list[Path]:
    root = one.folder.parent if one.folder.name == "annotations" else one.folder
    return [root / one.name, root / "images" / one.name, root / "images", root, root.parent / one.name]


def _places_shown(one: Set) -> str:
    return ", ".join(str(place) for place in dict.fromkeys(_places(one)))
