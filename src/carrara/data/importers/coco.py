"""COCO's annotations: boxes with categories and several captions a picture, the pictures in folders beside."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carrara.data.archives import unsafe
from carrara.data.files import File, below, natural, printable
from carrara.data.importers.folder import file_at
from carrara.data.importing import Options
from carrara.data.rows import UNSTATED, Rejected, Row, Survey, tidy
from carrara.data.words import split_named
from carrara.errors import UserError

_NAMES = re.compile(r"(instances|captions)_?(.*)\.json|(_annotations)\.coco\.json")
_HEAD = 4096  # bytes by which a lone file is known


@dataclass
class Said:
    """What the annotations of one set (train2017 …) say of a picture."""

    name: str
    licence: str | None = None
    url: str | None = None
    sides: tuple[float, float] = (0.0, 0.0)
    captions: list[str] = field(default_factory=list)
    boxes: list[dict[str, Any]] | None = None  # None where no file with boxes knows the picture


@dataclass
class Set:
    """The files that annotate the same pictures, and those pictures by number."""

    name: str
    folder: Path
    pictures: dict[Any, Said] = field(default_factory=dict)
    faults: list[Rejected] = field(default_factory=list)


def matches(source: str) -> bool:
    """The source is a folder with COCO's files in it, in ``annotations`` or one below, or such a file."""
    return bool(_files(Path(source)))


def survey(source: str, options: Options) -> Survey:
    """Counts the annotated pictures; the digest is of the annotations' names, sizes and times."""
    digest = hashlib.sha256(repr(options.licence).encode())
    for path in _files(Path(source)):
        about = path.stat()
        digest.update(f"{below(Path(source), path)!r} {about.st_size} {about.st_mtime_ns}\n".encode())
    sets = _sets(Path(source))
    total = sum(len(one.pictures) for one in sets)
    wanted = [(one, said) for one in sets for said in one.pictures.values()]
    if not any(_picture(one, said.name) for one, said in wanted):
        first = f"; {wanted[0][1].name!r} is in none of {_places_shown(wanted[0][0])}" if wanted else ""
        raise UserError(f"none of the {total} pictures that {source} annotates is there{first}")
    return Survey(total, digest.hexdigest())


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """A row per picture, in the order of the annotations, the sets in natural order."""
    for one in _sets(Path(source)):
        yield from one.faults
        for said in one.pictures.values():
            name = f"{one.name}/{printable(said.name)}".lstrip("/")
            if reason := unsafe(said.name):
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
                    split=split_named(one.name),
                    licence=said.licence or options.licence,
                    boxes=boxes,
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
    return any(f'"{key}"'.encode() in head for key in ("images", "annotations", "categories"))


def _sets(source: Path) -> list[Set]:
    sets: dict[tuple[Path, str], Set] = {}
    for path in _files(source):
        named = _NAMES.fullmatch(path.name.lower())
        name = (named[2] or "") if named else path.stem
        if named and named[3]:  # the name of the set is that of the folder
            name = path.parent.name
        one = sets.setdefault((path.parent, name), Set(name, path.parent))
        _read(path, one)
    return list(sets.values())


def _read(path: Path, one: Set) -> None:
    """Takes in one file: the pictures that it lists and what it says of each."""
    try:
        with open(path, encoding="utf-8") as file:
            said = json.load(file)
        images, annotations = said["images"], said["annotations"]
        if not isinstance(annotations, list):
            raise TypeError("its annotations are no list")
        licences = {
            entry["id"]: entry.get("url") or entry.get("name") for entry in said.get("licenses") or []
        }
        categories = {entry["id"]: str(entry["name"]) for entry in said.get("categories") or []}
        for image in images:
            known = one.pictures.setdefault(image["id"], Said(str(image["file_name"])))
            known.licence = known.licence or tidy(licences.get(image.get("license")))
            known.url = known.url or str(image.get("coco_url") or image.get("flickr_url") or "") or None
            known.sides = (float(image.get("width") or 0), float(image.get("height") or 0))
            if categories and known.boxes is None:
                known.boxes = []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not COCO's JSON: {reason}") from None
    strange: dict[str, int] = defaultdict(int)
    for entry in annotations:
        try:
            known = one.pictures[entry["image_id"]]
            if "caption" in entry and (text := tidy(str(entry["caption"]))) and text not in known.captions:
                known.captions.append(text)
            if "bbox" in entry and known.boxes is not None:
                left, top, width, height = (float(n) for n in entry["bbox"])
                label = categories[entry["category_id"]]
                known.boxes.append({"label": label, "box": [left, top, width, height]})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            strange[f"{type(error).__name__} {error}"[:80]] += 1
    for reason, count in strange.items():
        one.faults.append(Rejected(path.name, f"{count} annotations that cannot be read ({reason})"))


def _boxes(said: Said) -> tuple[list[str], str | None]:
    """The boxes as fractions of the sides, and why others are none."""
    if said.boxes is None:
        return [], None
    width, height = said.sides
    if not (width > 0 and height > 0):
        return ["its width and height are not said, so its boxes cannot be used"], None
    good, faults = [], []
    for entry in said.boxes:
        left, top, across, down = entry["box"]
        right, bottom = min(1.0, (left + across) / width), min(1.0, (top + down) / height)
        left, top = max(0.0, left / width), max(0.0, top / height)
        if right > left and bottom > top:
            good.append({"label": entry["label"], "box": [left, top, right - left, bottom - top]})
        else:
            faults.append(f"a box of {entry['label']!r} without area in the picture")
    return faults, json.dumps(good)


def _picture(one: Set, name: str) -> File | None:
    if unsafe(name):
        return None
    for place in _places(one):
        path = os.path.join(place, name)
        try:
            return file_at(path, os.stat(path))
        except (OSError, ValueError):
            continue
    return None


def _places(one: Set) -> list[Path]:
    root = one.folder.parent if one.folder.name == "annotations" else one.folder
    return [root / one.name, root / "images" / one.name, root / "images", root, root.parent / one.name]


def _places_shown(one: Set) -> str:
    return ", ".join(str(place) for place in dict.fromkeys(_places(one)))
