"""Prompts from a file: a line of text is a prompt, a line of .jsonl a request with columns by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carrara.errors import UserError, nearest, one_line
from carrara.generation.options import RequestOptions

_LONGEST = 64 * 2**20  # bytes of a file of prompts
_TEXTS = ("negative", "label", "original")


def read_prompts(path: Path, usual: RequestOptions, columns: list[str]) -> list[tuple[int, RequestOptions]]:
    """The number and the request of each line that is not empty; what a line leaves out is as in ``usual``.

    ``columns`` are those that the model is shown pictures of. UserError names the line that cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from None
    if len(data) > _LONGEST:
        raise UserError(f"{path} is larger than {_LONGEST >> 20} MB; expected a prompt per line")
    found = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8").strip()
            table = path.suffix.lower() in (".jsonl", ".ndjson")
            found.append(
                (number, _asked(text, usual, columns) if table else usual.model_copy(update={"prompt": text}))
            )
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number} is not UTF-8 text") from None
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    if not found:
        raise UserError(f"{path} has no prompt; expected one per line")
    return found


def _asked(line: str, usual: RequestOptions, columns: list[str]) -> RequestOptions:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError('not JSON; expected for example {"caption": "a red disc", "label": "disc"}') from None
    if not isinstance(row, dict):
        raise UserError('expected columns by name, for example {"caption": "a red disc"}')
    row = {name: value for name, value in row.items() if value is not None}
    captions = [name for name in row if name == "caption" or name.startswith("caption_")]
    if len(captions) > 1:
        raise UserError(f"it has {' and '.join(captions)}; expected one caption")
    known = ["caption", *_TEXTS, "boxes", "mask", "from", *columns]
    for name in row:
        if name not in known and name not in captions:
            raise UserError(f"no column is called {name!r}{nearest(name, known)}")
    given: dict[str, Any] = {name: _text(row, name) for name in _TEXTS if name in row}
    if captions:
        given["prompt"] = _text(row, captions[0])
    for name, field in (("mask", "mask"), ("from", "start")):
        if name in row:
            given[field] = Path(_text(row, name))
    if "boxes" in row:
        boxes = row["boxes"]
        given["boxes"] = boxes if isinstance(boxes, str) else json.dumps(boxes, ensure_ascii=False)
    if pictures := tuple(f"{name}={_text(row, name)}" for name in columns if name in row):
        given["picture"] = pictures
    return usual.model_copy(update=given)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{name!r} is {json.dumps(value)[:40]}; expected text")
    return str(value)
