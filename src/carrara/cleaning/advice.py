"""Advice: what the numbers of a data set mean for a training, in sentences that end in what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from carrara.cleaning.caption_statistics import WINDOW
from carrara.importing.summary import FEW, few

if TYPE_CHECKING:
    from carrara.cleaning.figures import Statistics

_LITTLE_CUT = 0.05  # of a picture, on average
_SMALL, _MANY = 0.02, 0.2  # shares of the pictures


def advice(found: Statistics, path: str) -> list[str]:
    """The sentences, what matters most first; none where nothing stands out."""
    return [
        *_copies(found, path),
        *_words(found, path),
        *_crops(found, path),
        *_classes(found, path),
        *_rest(found),
    ]


def _copies(found: Statistics, path: str) -> list[str]:
    looked = found.copies
    among = "" if looked.looked_at == found.pictures else f" among the {looked.looked_at} looked at"
    said = []
    if looked.across_splits:
        said.append(
            f"look-alikes{among} are partly held out and partly trained on ({_groups(looked.across_splits)}), so that "
            f"held-out figures flatter: `carrara data split {path} --by near`"
        )
    if looked.pictures > _SMALL / 2 * looked.looked_at:
        said.append(
            f"{looked.pictures} pictures{among} look like another one, which a model comes to memorize: "
            f"`carrara data dedup {path}` shows them"
        )
    if not found.splits.get("held_out"):
        said.append(f"nothing is held out to measure on: `carrara data split {path} --held-out 0.05`")
    return said


def _words(found: Statistics, path: str) -> list[str]:
    said = []
    if found.uncaptioned:
        one = "no picture has a caption" if found.uncaptioned == found.pictures else ""
        several = f"{found.uncaptioned} pictures have no caption in any language"
        labelled = found.classes is not None and found.classes.labelled
        # A further column beside captions of no stated language would give the others a second one.
        unstated = " --language und" if "und" in found.languages else ""
        how = (
            f"--from-columns 'a photo of a {{label}}'{unstated}` makes some of the labels" if labelled else ""
        )
        how = how or "--with CAPTIONER` lets your own captioner write some"
        said.append(f"{one or several}: `carrara data caption {path} {how}")
    for language, captions in found.languages.items():
        if captions.too_long > _SMALL:
            said.append(
                f"{captions.too_long:.0%} of the captions in {_named(language)} are longer than {WINDOW} tokens, and "
                "are cut there: give the recipe's text condition a greater length"
            )
        if captions.different < _MANY and captions.captions > FEW:
            said.append(
                f"captions in {_named(language)} repeat: only {captions.different:.1%} are different, which is little "
                "to learn words from"
            )
    return said


def _crops(found: Statistics, path: str) -> list[str]:
    said = []
    square, bucketed = found.square, found.bucketed
    if square.enlarged == found.pictures:
        said.append(
            f"all pictures are smaller than {found.size} pixels and would be enlarged, which a model learns as blur: "
            "train at their size (`carrara data stats --size` shows another, recipes take --set size=…)"
        )
    elif square.enlarged > _SMALL * found.pictures:
        said.append(
            f"{square.enlarged} pictures are smaller than {found.size} pixels and would be enlarged, which a model "
            f'learns as blur: `carrara data filter {path} NEW --where "width >= {found.size} AND '
            f'height >= {found.size}"`'
        )
    if square.lost and bucketed.lost and square.lost.mean > max(_LITTLE_CUT, 2 * bucketed.lost.mean):
        said.append(
            f"squares cut off {square.lost.mean:.0%} of a picture on average, buckets {bucketed.lost.mean:.0%}: "
            "train with --set ratio=2"
        )
    return said


def _classes(found: Statistics, path: str) -> list[str]:
    if found.classes is None or found.classes.count < 2 or found.classes.imbalance < 10:
        return []
    return [
        f"the largest class has {found.classes.imbalance:.0f} times as many pictures as the smallest: "
        f"`carrara data filter {path} NEW --balance label --at-most N` evens it out"
    ]


def _rest(found: Statistics) -> list[str]:
    said = []
    if found.empty:
        among = "" if found.decoded == found.pictures else f" of the {found.decoded} looked at"
        said.append(
            f"{found.empty} pictures{among} look empty on white and in 8 bits: whether they are so for your model "
            "depends on its channels and bits"
        )
    if (unknown := found.licences.get("not stated", 0)) > _SMALL * found.pictures:
        said.append(
            f"no licence is known for {unknown} pictures: `carrara data import … --licence` states one"
        )
    return [*said, *few(found.pictures)]


def _groups(count: int) -> str:
    return f"{count} groups" if count != 1 else "1 group"


def _named(language: str) -> str:
    return "no stated language" if language == "und" else language
