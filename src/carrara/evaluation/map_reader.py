"""A map of classes recovered from a picture by a small U-Net that learned it on real ones (Ronneberger et al. 2015).

What is asked for as a map, or as boxes, is compared with what is found so in the picture that was made.

Boxes found in recovered maps as connected regions, and how they overlap with those that were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.conditions.image import UNLABELLED
from carrara.geometry import Box
from carrara.tensors import from_pixels, generator

if TYPE_CHECKING:
    from carrara.metrics.reconstruction import Autocast


SIDE = 64  # pixels a side at which maps are recovered, at most
_FACTOR = 8


class _Unit(nn.Module):
    """Two 3x3 convolutions, each normalised."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(into, out, 3, padding=1),
            nn.GroupNorm(8, out),
            nn.SiLU(),
            nn.Conv2d(out, out, 3, padding=1),
            nn.GroupNorm(8, out),
            nn.SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


class MapReader(nn.Module):
    """Pictures to maps of the same side, at most `SIDE`."""

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__()
        if side % _FACTOR:
            raise ValueError(f"maps are recovered at a side that is a multiple of {_FACTOR}, not at {side}")
        self.side, self.classes = side, classes
        self.down1, self.down2, self.down3 = _Unit(4 * channels, 32), _Unit(32, 64), _Unit(64, 96)
        self.up2, self.up1 = _Unit(96 + 64, 64), _Unit(64 + 32, 32)
        self.out = nn.Conv2d(32, 4 * classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """``[b c side side]`` in [-1, 1] to logits ``[b classes side side]``."""
        a = self.down1(F.pixel_unshuffle(image, 2))
        b = self.down2(F.max_pool2d(a, 2))
        c = self.down3(F.max_pool2d(b, 2))
        b = self.up2(torch.cat([F.interpolate(c, scale_factor=2.0), b], 1))
        a = self.up1(torch.cat([F.interpolate(b, scale_factor=2.0), a], 1))
        return F.pixel_shuffle(self.out(a), 2)

    def read(self, pictures: Tensor, *, batch: int = 64) -> Tensor:
        """``uint8`` or ``uint16 [n c h w]`` to ``int64 [n side side]``, on the CPU."""
        device = self.out.weight.device
        with torch.inference_mode():
            parts = [
                self(_sized(part.to(device), self.side)).argmax(1).cpu()
                for part in torch.split(pictures, batch)
            ]
        return torch.cat(parts)


def learn_to_read(
    pictures: Tensor,
    maps: Tensor,
    classes: int,
    *,
    steps: int = 400,
    batch: int = 32,
    seed: int = 0,
    device: torch.device | None = None,
    autocast: Autocast = nullcontext,
) -> MapReader:
    """A reader trained on real pictures ``[n c h w]`` and their maps ``int64 [n h w]`` (255: no class).

    Half of what it sees is mirrored and half softened, so that it does not ask for the last bit of sharpness.
    """
    side = min(SIDE, pictures.shape[-1] - pictures.shape[-1] % _FACTOR)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = MapReader(pictures.shape[1], classes, side).to(device)
    reader.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    chance = generator(seed)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=4e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    maps = sized_maps(maps, side)
    for _ in range(steps):
        rows = torch.randint(len(pictures), (batch,), generator=chance)
        mirrored, soft = torch.rand(2, batch, generator=chance) < 0.5
        image, wanted = _sized(pictures[rows], side), maps[rows]
        image = torch.where(mirrored[:, None, None, None], image.flip(-1), image)
        wanted = torch.where(mirrored[:, None, None], wanted.flip(-1), wanted)
        softened = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        image = torch.where(soft[:, None, None, None], softened, image)
        with autocast():
            logits = reader(image.to(device))
        loss = F.cross_entropy(logits.float(), wanted.to(device), ignore_index=UNLABELLED)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
    return reader.eval().requires_grad_(False)


def sized_maps(maps: Tensor, side: int) -> Tensor:
    """``int64 [n h w]`` to ``[n side side]``, each the nearest one's."""
    if maps.shape[1:] == (side, side):
        return maps
    return F.interpolate(maps[:, None].double(), (side, side), mode="nearest-exact")[:, 0].long()


def overlaps(asked: Tensor, found: Tensor, classes: int) -> Tensor:
    """Intersection over union of each class, over all pictures together: ``float64 [classes]``.

    ``int64 [n h w]`` both; pixels asked to be of no class (255) do not count, and NaN stands for classes that
    nobody asked for.
    """
    counted = asked != UNLABELLED
    pairs = torch.bincount(asked[counted] * classes + found[counted], minlength=classes**2)
    table = pairs.view(classes, classes).double()  # asked, found
    both, wanted, seen = table.diagonal(), table.sum(1), table.sum(0)
    return torch.where(wanted > 0, both / (wanted + seen - both), torch.nan)


def mean_overlap(asked: Tensor, found: Tensor, classes: int) -> float:
    """The mean of `overlaps` over the classes that were asked for."""
    return float(overlaps(asked, found, classes).nanmean())


def _sized(pictures: Tensor, side: int) -> Tensor:
    image = from_pixels(pictures)
    if image.shape[-2:] == (side, side):
        return image
    return F.interpolate(image, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)


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
