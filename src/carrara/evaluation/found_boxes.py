"""Boxes found in recovered maps as connected regions, and how they overlap with those that were asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from carrara.conditions.boxes import Box

RIGHT = 0.5  # a box counts as obeyed where the overlap is above it (Everingham et al. 2010)
_SMALLEST = 0.005  # of a picture's area: smaller regions are specks


class Agreement(NamedTuple):
    """Of the boxes asked for: the mean overlap with what was found, the share above `RIGHT`; of the boxes found the
    share that nobody asked for; and how many were asked for."""

    overlap: float
    obeyed: float
    unasked: float
    asked: int


def regions(maps: Tensor) -> Tensor:
    """For ``int64 [n h w]`` a number each pixel that is the same wherever neighbours are of one class, else differs.

    Each pixel takes the largest number of its four neighbours of its class until nothing changes.
    """
    n, h, w = maps.shape
    found = torch.arange(n * h * w, device=maps.device).view(n, h, w)
    down, across = maps[:, 1:] == maps[:, :-1], maps[:, :, 1:] == maps[:, :, :-1]
    while True:
        new = found.clone()  # 0 is the least: a neighbour of another class gives nothing
        new[:, :-1] = torch.maximum(new[:, :-1], found[:, 1:] * down)
        new[:, 1:] = torch.maximum(new[:, 1:], found[:, :-1] * down)
        new[:, :, :-1] = torch.maximum(new[:, :, :-1], found[:, :, 1:] * across)
        new[:, :, 1:] = torch.maximum(new[:, :, 1:], found[:, :, :-1] * across)
        new = new.view(-1)[new]  # the number is a pixel of the region, whose own number may be larger already
        if torch.equal(new, found):
            return found
        found = new


def find_boxes(maps: Tensor, names: Mapping[int, str]) -> list[list[Box]]:
    """In each map the boxes around connected regions of the classes that have a name; specks are left out."""
    n, h, w = maps.shape
    parts = regions(maps.cpu())
    boxes: list[list[Box]] = [[] for _ in range(n)]
    for part, count in zip(*torch.unique(parts, return_counts=True), strict=True):
        index, place = divmod(int(part), h * w)
        name = names.get(int(maps[index, place // w, place % w]))
        if name is None or int(count) < _SMALLEST * h * w:
            continue
        down, across = (parts[index] == part).nonzero(as_tuple=True)
        boxes[index].append(
            Box(
                name,
                int(across.min()) / w,
                int(down.min()) / h,
                (int(across.max()) + 1) / w,
                (int(down.max()) + 1) / h,
            )
        )
    return boxes


def numbers_of_labels(maps: Tensor, boxes: Sequence[Sequence[Box]]) -> dict[int, str]:
    """Which class of the maps ``int64 [n h w]`` each label of the boxes means, learned from both.

    It is the one that fills such boxes most beyond its share of all pixels.
    """
    h, w = maps.shape[1:]
    classes = int(maps.max()) + 1
    everywhere = torch.bincount(maps.flatten(), minlength=classes).double() / maps.numel()
    inside: dict[str, Tensor] = {}
    for one, said in zip(maps, boxes, strict=True):
        for box in said:
            part = one[
                int(box.top * h) : max(int(box.top * h) + 1, round(box.bottom * h)),
                int(box.left * w) : max(int(box.left * w) + 1, round(box.right * w)),
            ]
            counts = torch.bincount(part.flatten(), minlength=classes).double()
            inside[box.label] = inside.get(box.label, torch.zeros(classes, dtype=torch.float64)) + counts
    return {
        int((counts / counts.sum() - everywhere).argmax()): label for label, counts in sorted(inside.items())
    }


def box_overlap(a: Box, b: Box) -> float:
    """Intersection over union of the places."""
    across = min(a.right, b.right) - max(a.left, b.left)
    down = min(a.bottom, b.bottom) - max(a.top, b.top)
    both = max(0.0, across) * max(0.0, down)
    return both / (a.area + b.area - both)


def compare(asked: Sequence[Sequence[Box]], found: Sequence[Sequence[Box]]) -> Agreement:
    """Picture by picture: a box found answers one box asked of its label, those that overlap most first.

    ValueError where no box was asked for.
    """
    best: list[float] = []
    answers = 0
    for wanted, seen in zip(asked, found, strict=True):
        pairs = sorted(
            (
                (box_overlap(a, b), i, j)
                for i, a in enumerate(wanted)
                for j, b in enumerate(seen)
                if a.label == b.label
            ),
            reverse=True,
        )
        matched: dict[int, float] = {}
        taken: set[int] = set()
        for overlap, i, j in pairs:
            if i not in matched and j not in taken:
                matched[i] = overlap
                taken.add(j)
        best += [matched.get(i, 0.0) for i in range(len(wanted))]
        answers += sum(overlap > RIGHT for overlap in matched.values())
    if not best:
        raise ValueError("no box was asked for")
    total = sum(map(len, found))
    return Agreement(
        sum(best) / len(best),
        sum(overlap > RIGHT for overlap in best) / len(best),
        1 - answers / total if total else 0.0,
        len(best),
    )
