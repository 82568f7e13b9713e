"""The description of a data set: `dataset.toml` with its sources, and `rejected.jsonl` with what was skipped."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import tomli_w

from carrara.dataset.store import UNFINISHED
from carrara.dataset.word_sources import UNKNOWN, source_id
from carrara.errors import UserError
from carrara.files import json_object
from carrara.terminal import note

if TYPE_CHECKING:
    from carrara.dataset.store import Store


ABOUT = "dataset.toml"
REJECTED = "rejected.jsonl"
FORMAT = 1
_SUBSET = {"of": "", "version": 0, "why": ""}
SOURCES = "sources"  # the folder of them in object storage


def about(store: Store) -> dict[str, Any] | None:
    """What ``dataset.toml`` says, with all ``sources``; None where there is none.

    What is damaged in it is left out with a note, where the table is there: that can be read without it.
    """
    text = store.read(ABOUT)
    if text is None and (_remote(store) or not store.has_table() or (store.work / UNFINISHED).exists()):
        return None
    known, damaged = _understood(text or "")
    if damaged and not store.has_table():
        raise UserError(f"{store.path}: {ABOUT} is damaged, and there is no table")
    if damaged:
        note(f"{ABOUT} of {store.path} is missing or damaged; what it said of the sources is in part unknown")
    more = [json_object(store.read(name) or "") for name in store.names(SOURCES)] if _remote(store) else []
    return {
        **known,
        "sources": [*known["sources"], *(m["told"] for m in more if m and _is_source(m.get("told")))],
    }


def _understood(text: str) -> tuple[dict[str, Any], bool]:
    """``dataset.toml`` as far as it can be read, and whether any of it cannot."""
    try:
        known = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        known = {}
    given = known.get("sources", [])
    sources = [s for s in given if _is_source(s)] if isinstance(given, list) else []
    whole = isinstance(known.get("format"), int) and sources == given
    if not _has(known.get("subset", _SUBSET), tuple(_SUBSET)):
        whole = False
        del known["subset"]
    return {"format": FORMAT, **known, "sources": sources}, not whole


def _is_source(told: Any) -> bool:
    return _has(told, ("importer", "source"))


def _has(table: Any, names: tuple[str, ...]) -> bool:
    return isinstance(table, dict) and all(isinstance(table.get(name), str | int) for name in names)


def rejected(store: Store) -> list[dict[str, str]]:
    """The lines of ``rejected.jsonl``; one that is damaged is left out with a note."""
    lines = [line for line in (store.read(REJECTED) or "").split("\n") if line]  # a name may hold U+2028
    parsed = [
        found for line in lines if (found := json_object(line)) and {"from", "file", "reason"} <= found.keys()
    ]
    if lost := len(lines) - len(parsed):
        note(f"{lost} of {len(lines)} lines in {REJECTED} of {store.path} are damaged and are left out")
    return parsed


def sources_of(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a data set tells of its sources, and of those of the one that it is a part of."""
    return [*about.get("sources", []), *about.get("subset", {}).get("sources", [])]


def places_by_id(about: Mapping[str, Any]) -> dict[str, str]:
    """The places of its sources by `word_sources.source_id`."""
    return {source_id(told["source"]): told["source"] for told in sources_of(about)}


def overtaken(source: dict[str, Any], sources: list[dict[str, Any]]) -> bool:
    """Whether words of pictures that a source shares with another were changed since by the import of that one."""
    if "order" not in source:  # by a Carrara that did not note it
        return source != sources[-1]
    later = [other for other in sources if other != source and other.get("changed", 0) >= source["order"]]
    return any(_share_pictures(source, other) for other in later)


def _share_pictures(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a third source, or one of them, brought pictures of both; an unknown one may have."""
    first, second = ({source_id(s["source"]), *s.get("shares", ())} for s in (one, other))
    return bool(first & second) or UNKNOWN in first | second


def tell(store: Store, told: dict[str, Any], left_out: list[dict[str, str]]) -> None:
    """Adds a source that was imported completely, in place of what an earlier import of the same said.

    ``told`` says in ``shares`` which sources brought pictures of it too, and in ``changed`` whether the import changed
    words of pictures that were there; what is noted is when it last did so, in an order with when it was imported.
    In object storage, where two may tell at once, every source has an object of its own.
    """
    sources = (about(store) or {}).get("sources", [])
    same = (told["importer"], told["source"])
    before: dict[str, Any] = next((s for s in sources if (s["importer"], s["source"]) == same), {})
    order = 1 + max((s.get("order", 0) for s in sources), default=0)
    told = {**told, "order": order, "changed": order if told.get("changed") else before.get("changed", 0)}
    told["shares"] = sorted({*told.get("shares", ()), *before.get("shares", ())})
    if _remote(store):
        name = hashlib.sha256(json.dumps([told["importer"], told["source"]]).encode()).hexdigest()[:16]
        store.write(f"{SOURCES}/{name}.json", json.dumps({"told": told, "rejected": left_out}, indent=1))
        _list_rejected(store)
        if store.read(ABOUT) is None:
            store.write(ABOUT, tomli_w.dumps({"format": FORMAT}))
        return
    with store.writing():
        kept = [
            json.dumps(line, ensure_ascii=False) for line in rejected(store) if line["from"] != told["source"]
        ]
        store.write(REJECTED, "".join(line + "\n" for line in [*kept, *_lines(told, left_out)]))
        text = store.read(ABOUT)
        known, damaged = _understood(text or f"format = {FORMAT}")
        if damaged and text:
            store.write(f"{ABOUT}.damaged", text)
        others = [s for s in known["sources"] if (s["importer"], s["source"]) != same]
        store.write(ABOUT, tomli_w.dumps({**known, "sources": [*others, told]}))


def _list_rejected(store: Store) -> None:
    """One list of what all sources had; again where another source was told meanwhile."""
    listed: list[str] = []
    while (names := store.names(SOURCES)) != listed:
        known = [found for name in names if (found := json_object(store.read(name) or ""))]
        lines = [
            line
            for one in known
            if _is_source(one.get("told"))
            for line in _lines(one["told"], one["rejected"])
        ]
        store.write(REJECTED, "".join(line + "\n" for line in lines))
        listed = names


def _lines(told: dict[str, Any], left_out: list[dict[str, str]]) -> list[str]:
    return [json.dumps({"from": told["source"], **entry}, ensure_ascii=False) for entry in left_out]


def _remote(store: Store) -> bool:
    return store.path != store.work
