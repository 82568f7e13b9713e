"""The page of `carrara data stats`: a data set as pictures and numbers, with what they mean on top.

The page of `carrara data dedup`: every group side by side, the one worth keeping first.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from carrara.cleaning.caption_statistics import WINDOW, caption_columns
from carrara.cleaning.spread import Spread
from carrara.errors import BadPicture
from carrara.images.decode import decode, window
from carrara.pages import html as report

if TYPE_CHECKING:
    from carrara.cleaning.crops import Cut
    from carrara.cleaning.duplicates import Group
    from carrara.cleaning.figures import Statistics
    from carrara.dataset.dataset import Dataset
    from carrara.images.tiff import Span


_SIDE = 160  # pixels of a picture on the page
_WORDS = 90  # characters below it
_BAR = 14  # rem
_STYLE = """<style>
body { max-width: 72rem; }
.bars td { padding: .12rem .9rem .12rem 0; border: 0; } .bars td.n { text-align: right; }
.bars i { display: inline-block; height: .8rem; background: var(--accent); border-radius: 2px; vertical-align: middle; }
.side { display: flex; flex-wrap: wrap; gap: 1.5rem 3rem; align-items: flex-start; } .side h3 { margin: 0 0 .4rem; }
figure { width: 9.2rem; } figure img { max-height: 9.2rem; object-fit: contain; }
figcaption { overflow-wrap: anywhere; } td { vertical-align: top; }
h3 { font-weight: 600; font-size: 1rem; margin-bottom: .4rem; }
</style>"""


def collection_page(found: Statistics, dataset: Dataset) -> str:
    """One HTML file with everything inside it."""
    held = found.splits.get("held_out", 0)
    lead = f"{found.pictures} pictures, {held} of them held out; version {found.version} of the table."
    if found.decoded < found.pictures:
        lead += f" What needs a decoded picture is of a random sample of {found.decoded}."
    sections = [
        ("What to know before training", _advice(found.advice)),
        ("Examples", _STYLE + _pictures(dataset, [(row, "") for row in found.some])),
        ("Sizes", _sizes(found)),
        (f"Cropped to {found.size} pixels", _crops(found, dataset)),
        ("Words", _words(found)),
    ]
    if found.classes:
        classes = found.classes
        lines = (
            f"<p>{classes.count} classes on {classes.labelled} of {found.pictures} pictures; the largest has "
            f"{classes.imbalance:.3g} times as many as the smallest, and the effective number of "
            f"classes is {classes.even:.3g}.</p>"
        )
        both = _bars(dict(classes.largest)) + (
            _titled("The smallest", _bars(dict(classes.smallest))) if classes.smallest else ""
        )
        sections.append(("Classes", lines + f'<div class="side">{both}</div>'))
    sections += [
        ("Copies", _copies(found)),
        ("Sources and licences", _origin(found)),
        ("Files", _files(found)),
    ]
    extremes = "".join(
        f"<h3>The {html.escape(name)}</h3>{_pictures(dataset, rows)}"
        for name, rows in found.extremes.items()
        if rows
    )
    sections.append(
        ("Extremes", f"<p>Where something is wrong with a collection, it shows here first.</p>{extremes}")
    )
    return report.page(f"Data set {found.name}", lead, sections)


def thumbnail(data: bytes, side: int = _SIDE, span: Span | None = None) -> Image.Image:
    """The picture within a square of ``side`` pixels; small ones are enlarged by a whole number. Raises BadPicture."""
    image = decode(data, channels=3, short_side=side, span=span)
    longest = max(image.size)
    if longest <= side // 2:
        zoom = side // longest
        return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _advice(sentences: Sequence[str]) -> str:
    if not sentences:
        return "<p>Nothing stands out.</p>"
    return f"<ul>{''.join(f'<li>{_with_code(one[0].upper() + one[1:])}.</li>' for one in sentences)}</ul>"


def _with_code(text: str) -> str:
    """Commands stand between backquotes."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if k % 2 else part for k, part in enumerate(parts))


def _pictures(dataset: Dataset, rows: Sequence[tuple[int, str]], *, frame: bool = False) -> str:
    """The pictures of some rows with words below: those given, or the caption."""
    asked = [row for row, _ in rows]
    names = caption_columns(dataset)
    taken = dataset.take(asked, ["image", "label", "source", *names]) if asked else {"image": []}
    shown = []
    for k, (row, words) in enumerate(rows):
        caption = next((taken[name][k] for name in names if taken[name][k]), None) or taken["label"][k]
        said = " · ".join(filter(None, [words, caption or taken["source"][k]]))
        said = said if len(said) <= _WORDS else said[: _WORDS - 1] + "…"
        try:
            image = thumbnail(taken["image"][k], span=dataset.span("image"))
        except BadPicture as error:
            shown.append(f"<figure><figcaption>{html.escape(f'row {row}: {error}')}</figcaption></figure>")
            continue
        shown.append(report.picture(_framed(image) if frame else image, f"{row}: {said}"))
    return "".join(shown)


def _framed(image: Image.Image) -> Image.Image:
    """The picture with what its square leaves out in grey."""
    dark = Image.blend(image, Image.new("RGB", image.size, "white"), 0.7)
    left, top, right, bottom = (round(edge) for edge in window(image.size, (1, 1)))
    right, bottom = (
        max(right, left + 1),
        max(bottom, top + 1),
    )  # of a very long picture next to nothing is left
    dark.paste(image.crop((left, top, right, bottom)), (left, top))
    ImageDraw.Draw(dark).rectangle((left, top, right - 1, bottom - 1), outline="#b4552d", width=2)
    return dark


def _spreads(rows: Mapping[str, Spread | None], form: str = ",.0f") -> str:
    head = ["", "lowest", "5th percentile", "median", "95th percentile", "highest", "mean"]
    lines = [[name, *(format(v, form) for v in spread)] for name, spread in rows.items() if spread]
    return report.table(lines, head)


def _bars(counts: Mapping[str, int]) -> str:
    """Counts as bars, the longest of the whole width."""
    if not counts:
        return '<p class="muted">none</p>'
    most = max(*counts.values(), 1)
    rows = "".join(
        f'<tr><td>{html.escape(str(name))}</td><td class="n">{count:,}</td>'
        f'<td><i style="width: {count / most * _BAR:.2f}rem"></i></td></tr>'
        for name, count in counts.items()
    )
    return f'<table class="bars">{rows}</table>'


def _titled(title: str, inner: str) -> str:
    return f"<div><h3>{html.escape(title)}</h3>{inner}</div>"


def _side_by_side(parts: Mapping[str, Mapping[str, int]]) -> str:
    shown = "".join(_titled(title, _bars(counts)) for title, counts in parts.items() if counts)
    return f'<div class="side">{shown}</div>'


def _sizes(found: Statistics) -> str:
    sizes = found.sizes
    table = _spreads({"width": sizes.width, "height": sizes.height})
    ratio = _spreads({"width : height": sizes.ratio}, ".2f")
    bars = _side_by_side({"Shapes": sizes.shapes, "Commonest sizes": dict(sizes.commonest)})
    return f"{table}{ratio}<p></p>{bars}"


def _crops(found: Statistics, dataset: Dataset) -> str:
    rows = [_cut("squares", found.square, found), _cut("buckets of sizes (ratio = 2)", found.bucketed, found)]
    head = ["cropped to", "lost on average", "pictures that lose over a quarter", "enlarged"]
    most = found.extremes.get("cut most by a square", [])
    used = {
        f"{width} x {height}": count
        for (height, width), count in zip(found.bucketed.sizes, found.bucketed.used, strict=True)
        if count
    }
    shown = f"<h3>Those that a square cuts most</h3>{_pictures(dataset, most, frame=True)}" if most else ""
    return f"{report.table(rows, head)}<p></p>{_side_by_side({'Pictures per bucket': used})}<p></p>{shown}"


def _cut(name: str, cut: Cut, found: Statistics) -> list[str]:
    lost = f"{cut.lost.mean:.1%}" if cut.lost else "–"
    return [name, lost, f"{cut.much:.1%}", f"{cut.enlarged:,} ({cut.enlarged / max(1, found.pictures):.1%})"]


def _words(found: Statistics) -> str:
    if not found.languages:
        return "<p>There are no captions.</p>"
    rows = []
    for language, said in found.languages.items():
        rows.append(
            [
                "not stated" if language == "und" else language,
                f"{said.captions:,}",
                f"{said.by_machine:,}",
                f"{said.characters.median:.0f} to {said.characters.p95:.0f}" if said.characters else "–",
                f"{said.tokens.median:.0f} to {said.tokens.p95:.0f}" if said.tokens else "–",
                f"{said.too_long:.1%}",
                f"{said.different:.0%}",
            ]
        )
    head = [
        "language",
        "captions",
        "by machine",
        "characters, median to 95 %",
        "tokens",
        f"over {WINDOW} tokens",
        "different",
    ]
    without = (
        f"<p>{found.uncaptioned:,} pictures have no caption in any language.</p>" if found.uncaptioned else ""
    )
    common = {
        f"Commonest, {'not stated' if language == 'und' else language}": dict(said.commonest[:6])
        for language, said in found.languages.items()
        if said.commonest
    }
    makers = _side_by_side({"Captions made by": found.captioned_by}) if found.captioned_by else ""
    tokens = "<p>Tokens are those of a vocabulary learned from the captions of the language.</p>"
    return (
        report.table(rows, head) + without + tokens + makers + _side_by_side(dict(list(common.items())[:4]))
    )


def _copies(found: Statistics) -> str:
    copies = found.copies
    among = "" if copies.looked_at == found.pictures else f" among the {copies.looked_at:,} looked at"
    if not copies.groups:
        return f"<p>No picture looks like another one{among}.</p>"
    across = (
        f" Some groups ({copies.across_splits:,}) are partly held out and partly in training."
        if copies.across_splits
        else ""
    )
    return (
        f"<p>{copies.pictures:,} pictures look like another one{among}, in groups ({copies.groups:,} of them).{across} "
        "<code>carrara data dedup</code> shows them.</p>"
    )


def _origin(found: Statistics) -> str:
    sources = "".join(f"<li>{html.escape(source)}</li>" for source in found.sources)
    parts = {"Licences": found.licences, "Hosts": found.hosts, "Flags": found.flags, "Splits": found.splits}
    alone = (
        f"<p>{found.groups:,} groups that a split must keep together; most pictures are alone in theirs.</p>"
    )
    alone = alone if found.groups < found.pictures else ""
    beside = _side_by_side({"Beside the pictures": found.beside}) if found.beside else ""
    return f"<ul>{sources}</ul>{_side_by_side(parts)}{alone}{beside}"


def _files(found: Statistics) -> str:
    files = found.files
    bars = _side_by_side({"Modes": files.modes, "Formats, of the sample": files.formats})
    kilobytes = files.bytes and Spread(*(value / 1000 for value in files.bytes))
    spreads = _spreads({"kilobytes": kilobytes}, ",.1f") + _spreads(
        {"light, of 255": found.light, "contrast, of 255": found.contrast}
    )
    deep = f"<p>{files.deep:,} are of 16 bits.</p>" if files.deep else ""
    return f"{bars}<p></p>{spreads}{deep}"


SHOWN = 300  # groups on a page
_COPIES = 11  # of one group
_COPY_SIDE = 112
_GROUP_STYLE = """<style>
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
        f'{_GROUP_STYLE}{words}{more}<div class="groups">{shown}</div>'
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
                report.picture(thumbnail(taken["image"][k], _COPY_SIDE, dataset.span("image")), words[:120])
            )
        except BadPicture as error:
            shown.append(f"<figure><figcaption>{html.escape(f'{words[:80]}: {error}')}</figcaption></figure>")
    left = len(group.rows) - len(rows)
    more = f'<p class="muted">and {left} more</p>' if left else ""
    return f'<div class="group">{"".join(shown)}{more}</div>'
