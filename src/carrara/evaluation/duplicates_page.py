"""The page of `carrara data dedup`: every group side by side, the one worth keeping first."""

from __future__ import annotations

import html
from collections.abc import Sequence

from carrara.data.keep.duplicates import Group
from carrara.data.keep.words import caption_columns
from carrara.data.rows import BadPicture
from carrara.data.table import Dataset
from carrara.evaluation import report
from carrara.evaluation.collection_page import thumbnail

SHOWN = 300  # groups on a page
_COPIES = 11  # of one group
_SIDE = 112
_STYLE = """<style>
body { max-width: 72rem; }
.groups { display: flex; flex-wrap: wrap; gap: .8rem; align-items: stretch; }
.group { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .1rem 0 .7rem; }
.group figure { width: 7rem; } .group figure img { width: 7rem; height: 7rem; object-fit: contain; }
.group figure:first-of-type img { outline: 3px solid var(--accent); } figcaption { overflow-wrap: anywhere; }
</style>"""


def duplicates_page(dataset: Dataset, groups: Sequence[Group], how: str) -> str:
    """One HTML file with everything inside it; ``how`` says by what they were found."""
    copies = sum(len(group.copies) for group in groups)
    lead = f"{copies} of {len(dataset)} pictures are much like another one, in {len(groups)} groups; found by {how}."
    shown = "".join(_group(dataset, group) for group in groups[:SHOWN])
    more = f"<p>The {SHOWN} largest of {len(groups)} groups.</p>" if len(groups) > SHOWN else ""
    words = "<p>Framed: the one that would be kept, with a caption and the largest. The others are each near to it.</p>"
    inner = (
        f'{_STYLE}{words}{more}<div class="groups">{shown}</div>'
        if groups
        else "<p>No picture is much like another one.</p>"
    )
    return report.page(f"Copies in {dataset.path.name}", lead, [("Groups", inner)])


def _group(dataset: Dataset, group: Group) -> str:
    rows = group.rows[: 1 + _COPIES]
    how = ["kept", *(copy.how for copy in group.copies)]
    names = caption_columns(dataset)
    taken = dataset.take(rows, ["image", "width", "height", "split", "source", *names])
    shown = []
    for k, row in enumerate(rows):
        caption = next((taken[name][k] for name in names if taken[name][k]), None) or taken["source"][k] or ""
        held = ", held out" if taken["split"][k] == "held_out" else ""
        words = f"{how[k]} · {taken['width'][k]} x {taken['height'][k]}{held} · {row}: {caption}"
        try:
            shown.append(
                report.picture(thumbnail(taken["image"][k], _SIDE, dataset.span("image")), words[:120])
            )
        except BadPicture as error:
            shown.append(f"<figure><figcaption>{html.escape(f'{words[:80]}: {error}')}</figcaption></figure>")
    left = len(group.rows) - len(rows)
    more = f'<p class="muted">and {left} more</p>' if left else ""
    return f'<div class="group">{"".join(shown)}{more}</div>'
