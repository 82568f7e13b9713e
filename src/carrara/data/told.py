"""What a data set tells of itself: `dataset.toml` with its sources, and `rejected.jsonl` with what was skipped."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from carrara.config import read_toml
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


def tell(store: Store, told: dict[str, Any], rejected: list[dict[str, str]]) -> None:
    """Adds a source that was imported completely, in place of what an earlier import of the same said.

    In object storage, where two may tell at once, every source has an object of its own.
    """
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
        same = (told["importer"], told["source"])
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
