"""What a data set tells of itself: `dataset.toml` with its sources, and `rejected.jsonl` with what was skipped."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from carrara.config import read_toml
from carrara.data.owners import UNKNOWN, source_id
from carrara.data.store import Store

ABOUT = "dataset.toml"
REJECTED = "rejected.jsonl"
FORMAT = 1
SOURCES = "sources"  # the folder of them in object storage


def about(store: Store) -> dict[str, Any] | None:
    """What ``dataset.toml`` says, with all ``sources``; None where there is none."""
    if _remote(store):
        text = store.read(ABOUT)
        if text is None:
            return None
        more = [json.loads(store.read(name) or "{}") for name in store.names(SOURCES)]
        known = tomllib.loads(text)
        return {**known, "sources": [*known.get("sources", []), *(m["told"] for m in more if m)]}
    path = Path(store.path) / ABOUT
    return read_toml(path) if path.is_file() else None


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


def tell(store: Store, told: dict[str, Any], rejected: list[dict[str, str]]) -> None:
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
        store.write(f"{SOURCES}/{name}.json", json.dumps({"told": told, "rejected": rejected}, indent=1))
        _list_rejected(store)
        if store.read(ABOUT) is None:
            store.write(ABOUT, tomli_w.dumps({"format": FORMAT}))
        return
    with store.writing():
        lines = [line for line in (store.read(REJECTED) or "").split("\n") if line]  # a name may hold U+2028
        kept = [line for line in lines if json.loads(line)["from"] != told["source"]]
        store.write(REJECTED, "".join(line + "\n" for line in [*kept, *_lines(told, rejected)]))
        known = about(store) or {"format": FORMAT}
        others = [s for s in known.get("sources", []) if (s["importer"], s["source"]) != same]
        store.write(ABOUT, tomli_w.dumps({**known, "sources": [*others, told]}))


def _list_rejected(store: Store) -> None:
    """One list of what all sources had; again where another source was told meanwhile."""
    listed: list[str] = []
    while (names := store.names(SOURCES)) != listed:
        known = [json.loads(text) for name in names if (text := store.read(name))]
        lines = [line for one in known for line in _lines(one["told"], one["rejected"])]
        store.write(REJECTED, "".join(line + "\n" for line in lines))
        listed = names


def _lines(told: dict[str, Any], rejected: list[dict[str, str]]) -> list[str]:
    return [json.dumps({"from": told["source"], **entry}, ensure_ascii=False) for entry in rejected]


def _remote(store: Store) -> bool:
    return store.path != store.work
