"""Whether the channels and bits of a data set's pictures can become those that a recipe asks for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from carrara.errors import UserError
from carrara.images.channels import bits_of, can_become, channels_of, has_more

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset


def channel_counts(dataset: Dataset) -> dict[int, int]:
    """How many pictures have how many channels, fewest channels first."""
    return dict(sorted(Counter(channels_of(mode) for mode in dataset.column("mode")).items()))


def check_channels(dataset: Dataset, channels: int, bits: int = 8) -> str | None:
    """A line about the pictures that will be converted to ``channels`` of ``bits``; None where none will.

    That transparency is laid on white is not worth the line. UserError where some pictures cannot become it.
    """
    modes: Counter[str] = Counter(dataset.column("mode"))
    total = sum(modes.values())
    if wrong := sum(n for mode, n in modes.items() if not can_become(mode, channels)):
        found = ", ".join(f"{n} with {count}" for count, n in channel_counts(dataset).items())
        raise UserError(
            f"{wrong} of the {total} pictures in {dataset.path} cannot become the {_channels(channels)} that the "
            f"recipe asks for (by channels: {found}); set its channels to theirs, or import them apart"
        )
    by_channels: Counter[int] = Counter()
    for mode, n in modes.items():
        by_channels[channels if channels_of(mode) == channels else channels_of(mode.partition(" x ")[0])] += n
    deep = sum(n for mode, n in modes.items() if bits_of(mode) == 16)
    notes = []
    if channels in (3, 4) and (grey := by_channels[1] + by_channels[2]):
        notes.append(f"{grey} of {total} pictures are grey: they become {_channels(channels)}")
    if channels in (1, 2) and (colour := by_channels[3] + by_channels[4]):
        notes.append(f"{colour} of {total} pictures are in colour: they become grey")
    if more := sum(n for mode, n in modes.items() if has_more(mode) and channels_of(mode) != channels):
        notes.append(f"{more} of {total} pictures have a sample beside their colours, which is left out")
    palettes = sum(n for mode, n in modes.items() if mode == "P")  # may be transparent; the mode does not say
    if channels in (2, 4) and (opaque := by_channels[1] + by_channels[3] - palettes):
        notes.append(f"{opaque} of {total} pictures have no transparency: they become opaque")
    if bits == 8 and deep:
        notes.append(
            f"{deep} of {total} pictures have 16 bits: they become 8, their finer steps are lost (bits = 16 keeps them)"
        )
    if bits == 16 and deep < total:
        notes.append(f"{total - deep} of {total} pictures have 8 bits: they become 16, without finer steps")
    return "; ".join(notes) or None


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"
