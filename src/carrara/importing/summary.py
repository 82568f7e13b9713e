"""The summary of an import: what it did, and the data set after it, in sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from carrara.dataset import ranges
from carrara.dataset.description import REJECTED

# What a reason says of one file alone: numbers and what stands in quotes. Bits and a server's answers are kinds.
_OWN = re.compile(
    r"""(?<!\w)(?:'[^']*'|"[^"]*"|-?inf(?!\w))|(?<!answered )(?<![\w.])-?\d+(?:\.\d+)*(?:e[+-]?\d+)?(?!\w|-bit)"""
)


def kinds(reasons: Iterable[str]) -> dict[str, int]:
    """How often there was which kind of reason, the most frequent first: those that differ only in numbers and quoted
    names are one, with "…" where they differ."""
    shared: dict[str, list[str]] = {}
    counts = Counter[str]()
    for reason in reasons:
        own = _OWN.findall(reason)
        kind = _OWN.sub("\0", reason)
        counts[kind] += 1
        before = shared.setdefault(kind, own)
        shared[kind] = [a if a == b else "…" for a, b in zip(before, own, strict=True)]
    return {_filled(kind, shared[kind]): count for kind, count in counts.most_common()}


def _filled(kind: str, own: Iterable[str]) -> str:
    left = iter(own)
    return re.sub("\0", lambda _: next(left), kind)


FEW = 500  # pictures


def few(pictures: int) -> list[str]:
    """Says so where a model would memorize so few pictures."""
    one = "1 picture is" if pictures == 1 else f"{pictures} pictures are"
    return [f"{one} few: a model will memorize rather than learn"] if pictures < FEW else []


@dataclass(frozen=True)
class Summary:
    """What an import did, and the data set after it."""

    added: int
    updated: int
    duplicates: int
    rejected: int
    unchanged: bool
    pictures: int
    held_out: int
    captions: dict[str, int] = field(default_factory=dict)
    labels: int = 0
    beside: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)
    spans: dict[str, ranges.Span] = field(default_factory=dict)
    unstated: int = 0
    on_maps: list[str] = field(default_factory=list)  # sentences on maps that are hardly of classes
    lost: int = 0  # of those updated, how many lost a caption
    replaced: int = 0
    before: int = field(default=0, compare=False)  # the version with the words of before
    dataset: str = field(default="", compare=False)  # what to call it in commands

    def lines(self) -> list[str]:
        """The summary in readable sentences, the most important first."""
        return [*self._changes(), *self._left_out(), *few(self.pictures), *self._contents()]

    def _changes(self) -> Iterator[str]:
        """What the import did."""
        if self.unchanged:
            all_in = "" if self.rejected else ", all of its pictures are in"
            yield f"nothing to do: the source is unchanged{all_in} ({self.pictures} in all)"
        else:
            words = f", {new} with new words" if (new := self.updated - self.lost) else ""
            words += f", {self.lost} lost their caption" if self.lost else ""
            yield f"{self.added} pictures added{words}; {self.pictures} in all, {self.held_out} held out"
        if 0 < self.pictures == self.held_out:
            yield (
                "all of them are held out, so there is nothing to train on: the names of files or folders (test, val), "
                "a column 'split' or chance (--held-out) say so"
            )
        if self.lost:
            yield (
                "their source has no caption of them any more; "
                f"`carrara data restore {self.dataset}@{self.before}` brings back what was there"
            )
        if self.replaced:
            yield (
                f"{self.replaced} were edited in place: what they are now is a row of its own, and the old row stays, "
                f"with the flag 'replaced'; leave it out with `carrara data filter {self.dataset} NEW --where "
                "\"flags IS NULL OR flags NOT LIKE '%replaced%'\"`"
            )

    def _left_out(self) -> Iterator[str]:
        """What made no row of its own."""
        if self.duplicates:
            were, their = ("was", "its") if self.duplicates == 1 else ("were", "their")
            yield (
                f"{self.duplicates} {were} already there under another name (listed in {REJECTED}, too); {their} "
                "captions were added to that picture, further ones in a language to its captions_more"
            )
        if self.rejected and self.unchanged:
            yield f"still left out of it: {self.rejected}, listed in {REJECTED}; --retry tries them again"
        elif self.rejected:
            # What was hidden was hardly meant to come in; the reasons for the rest are worth more.
            reasons = sorted(self.reasons.items(), key=lambda one: ("hidden" in one[0], -one[1]))
            why = "; ".join(f"{count} x {reason}" for reason, count in reasons[:3])
            more = f"; and {len(self.reasons) - 3} more reasons" if len(self.reasons) > 3 else ""
            yield f"{self.rejected} skipped, listed in {REJECTED}: {why}{more}"

    def _contents(self) -> Iterator[str]:
        """What the data set holds now."""
        if self.captions:
            spoken = ", ".join(f"{'unstated' if k == 'und' else k} {n}" for k, n in self.captions.items())
            yield f"captions by language: {spoken}"
        else:
            yield "no captions: a model trained on it will be unconditional"
        if self.beside:
            yield f"beside the pictures: {', '.join(f'{name} {count}' for name, count in self.beside.items())}"
        if self.remarks:
            why = "; ".join(f"{count} x {remark}" for remark, count in list(self.remarks.items())[:3])
            yield f"with a remark in {REJECTED}: {why}"
        yield from self.on_maps
        if self.unstated and "image" not in self.spans:
            yield (
                f"{self.unstated} pictures hold floats or whole numbers of more than 16 bits: white is 1 or the "
                "largest such number (--range chooses, at a first import)"
            )
        if self.spans:
            alike = {
                span: [n for n, other in self.spans.items() if other == span] for span in self.spans.values()
            }
            read = ", ".join(
                ranges.words(span)
                if len(names) == len(ranges.COLUMNS)
                else f"{' and '.join(names)} {ranges.words(span)}"
                for span, names in alike.items()
            )
            yield f"numbers without a usual range, from black to white: {read}"
