"""Splits and labels by the names of files and folders and of their neighbours: ``train`` beside ``val`` is a split,
``train`` beside ``bus`` a class, and folders that only number what is in them say nothing."""

from __future__ import annotations

import functools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

from carrara.images.header import SUFFIXES
from carrara.importing.column_names import HELD_OUT

_NAMED = re.compile(rf"(train|{'|'.join(HELD_OUT)})(?![a-z])(.*)", re.DOTALL)
_NUMBERING = re.compile(r"([^a-z]|of|part|shard|chunk|batch|split|set|data|images?)*")
_PIECE = re.compile(
    r"[a-z]*[-_ ]?(part|shard|chunk|batch|images?|imgs?|dir|folder)[-_ ]?\d+([-_ ]of[-_ ]?\d+)?",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"([a-z]+[-_ ]?)?\d+", re.IGNORECASE)  # a file as one of many: 0001, IMG_0001
_DIGITS = 3  # of a folder's number, from which it may be one of a shard


def splits_among(names: Collection[str], *, whole: bool) -> dict[str, str]:
    """Which of the names that lie side by side say a split: "train" or "held_out".

    All must, or some each of the two; else these are classes that are called so. A name is that of a split where
    nothing but a number follows (nothing at all, if ``whole``), or what follows another split too: ``train_clean`` and
    ``test_clean``.
    """
    parsed = {name: found for name in names if (found := _NAMED.fullmatch(name.lower()))}
    of = {name: "train" if found[1] == "train" else "held_out" for name, found in parsed.items()}
    if whole:
        saying = {name: of[name] for name, found in parsed.items() if not found[2]}
    else:
        rests = {name: re.sub(r"\d+", "", found[2]) for name, found in parsed.items()}
        kinds = defaultdict[str, set[str]](set)
        for name, rest in rests.items():
            kinds[rest].add(of[name])
        saying = {
            name: of[name]
            for name, rest in rests.items()
            if _NUMBERING.fullmatch(rest) or len(kinds[rest]) == 2
        }
    return saying if len(saying) == len(names) or len({*saying.values()}) == 2 else {}


def splits_of(paths: Iterable[str]) -> dict[str, str]:
    """The splits of a source's files by their paths below it: as their own names say, or else a folder's."""
    paths = list(paths)
    names = [path.lower().split("/") for path in paths]
    beside = defaultdict[tuple[str, ...], set[str]](set)
    for parts in names:
        for k, name in enumerate(parts):
            beside[(*parts[:k], "/" if k == len(parts) - 1 else "")].add(name.partition(".")[0])
    said = {place: splits_among(among, whole=False) for place, among in beside.items()}
    found = {}
    for path, parts in zip(paths, names, strict=True):
        for k in reversed(range(len(parts))):
            place = (*parts[:k], "/" if k == len(parts) - 1 else "")
            if split := said[place].get(parts[k].partition(".")[0]):
                found[path] = split
                break
    return found


class Folders:
    """What the folders of a picture say: ``train/cat`` has cats to train on.

    ``inside(folder)`` gives the names of the folders in one that hold pictures, ``files(folder)`` those of its files;
    they are asked only where a name makes it necessary.
    """

    def __init__(
        self, inside: Callable[[str], Collection[str]], files: Callable[[str], Iterable[str]]
    ) -> None:
        self._inside, self._files = inside, files
        self.unsure = dict[str, None]()  # the first of folders whose numbers might have been meant for labels
        self.said = functools.lru_cache(maxsize=64)(self._said)  # pictures of a folder come together
        self._splits = functools.lru_cache(maxsize=64)(self._splits_in)
        self._numbers = functools.lru_cache(maxsize=64)(self._are_numbers)

    def _said(self, folder: str) -> tuple[str | None, str | None]:
        """The split and the label of the pictures in a folder, by its path below the source."""
        split, label, above = None, None, ""
        for name in folder.split("/") if folder else ():
            own = self._splits(above).get(name) if _NAMED.fullmatch(name.lower()) else None
            split = split or own
            if own is not None or not self._is_number(above, name):
                label = name if own is None else None
            above = f"{above}/{name}".lstrip("/")
        return split, label

    def _splits_in(self, folder: str) -> dict[str, str]:
        return splits_among(self._inside(folder), whole=True)

    def _is_number(self, above: str, name: str) -> bool:
        return bool(_PIECE.fullmatch(name) or name.isdigit()) and self._numbers(above)

    def _are_numbers(self, folder: str) -> bool:
        """Whether the folders in this one are shards of one row of pictures: so called, or numbers of one length whose
        pictures are numbered, on from folder to folder or in each anew. These must be numbers without a gap from 0 or
        1 on: the numbers of classes and of people often have some."""
        names = sorted(self._inside(folder))
        if all(_PIECE.fullmatch(name) for name in names):
            return True
        if len({len(name) for name in names}) > 1 or not all(
            n.isdecimal() and len(n) >= _DIGITS for n in names
        ):
            return False
        some = [self._stems(f"{folder}/{name}".lstrip("/")) for name in names[:2]]
        stems, first = set[str]().union(*some), int(names[0])
        anew = len(stems) < sum(map(len, some))
        without_gap = first in (0, 1) and int(names[-1]) - first == len(names) - 1
        shards = all(map(_COUNTED.fullmatch, stems)) and (without_gap or not anew)
        if shards and anew:
            self.unsure[f"{folder}/{names[0]}".lstrip("/")] = None
        return shards

    def _stems(self, folder: str) -> set[str]:
        parted = (os.path.splitext(name) for name in self._files(folder))
        return {stem for stem, suffix in parted if suffix.lower() in SUFFIXES}
