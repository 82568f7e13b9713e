"""What a page may change: captions and which pictures are left out, a version each, and only with the token."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from carrara.dataset.dataset import Dataset
from carrara.dataset.word_changes import amend
from carrara.serving.app import browse_app
from carrara.serving.edits import HEADER
from serving.conftest import asker, embedder_of

TOKEN = "a secret of this server"
Send = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def own(data: Dataset, tmp_path: Path) -> Dataset:
    """A copy, to be changed."""
    shutil.copytree(data.path, tmp_path / "own")
    return Dataset.open(tmp_path / "own")


def sender(client: TestClient, dataset: Dataset) -> Send:
    ids = dataset.column("id")

    def send(row: int, change: object, token: str = TOKEN, **headers: str) -> tuple[int, dict[str, Any]]:
        body = change if isinstance(change, bytes) else json.dumps(change).encode()
        answer = client.post(
            f"/api/pictures/{row}/{ids[row]}", content=body, headers={HEADER: token, **headers}
        )
        return answer.status_code, answer.json()

    return send


@pytest.fixture
def send(own: Dataset) -> Send:
    return sender(asker(browse_app(own.path, embedder_of=embedder_of, token=TOKEN)), own)


@pytest.mark.parametrize(
    ("language", "column"), [("und", "caption"), ("de", "caption_de"), ("fr", "caption_fr")]
)
def test_a_caption_is_one_new_version_and_a_former_one_undoes_it(
    own: Dataset, send: Send, language: str, column: str
) -> None:
    amend(own, {"captioned_by": {3: "de:blip fr:git und:blip"}})
    was = own.column(column)[3] if column in own.columns else None
    status, record = send(3, {"language": language, "was": was, "text": "  e\u0301t\u00e9 "})
    assert (status, {c["language"]: c["text"] for c in record["captions"]}[language]) == (
        200,
        "\u00e9t\u00e9",
    )
    now = Dataset.open(own.path)
    assert record["version"] == now.version
    assert now.column(column)[3] == "\u00e9t\u00e9"
    assert language not in {word.partition(":")[0] for word in (now.column("captioned_by")[3] or "").split()}
    before = Dataset.open(f"{own.path}@{now.version - 1}")
    assert before.column(column)[3] == was
    assert before.column("caption")[2] == now.column("caption")[2]
    assert send(3, {"language": language, "was": "\u00e9t\u00e9", "text": " "})[0] == 200
    assert Dataset.open(own.path).column(column)[3] is None


def test_what_is_left_out_is_neither_trained_nor_measured_on(own: Dataset, send: Send) -> None:
    rows = {split: own.indices(split) for split in ("train", "held_out")}
    flags, whole = own.column("flags"), own.hash
    for split in rows:
        row = int(rows[split][1])
        status, record = send(row, {"left_out": True})
        assert status == 200
        assert "left_out" in next(c["value"] for c in record["columns"] if c["name"] == "flags").split()
        out = Dataset.open(own.path)
        assert out.indices(split).tolist() == [r for r in rows[split] if r != row]
        assert out.indices(None).tolist() == list(range(24))
        assert out.hash != whole
        assert send(row, {"left_out": False})[0] == 200
        back = Dataset.open(own.path)
        assert np.array_equal(back.indices(split), rows[split])
        assert (back.column("flags"), back.hash) == (flags, whole)


def test_two_who_write_at_once_lose_nothing(own: Dataset, send: Send) -> None:
    was = own.column("caption")[0]
    amend(own, {"caption": {0: "another's words"}})
    status, answer = send(0, {"language": "und", "was": was, "text": "mine"})
    assert (status, answer["error"]) == (
        400,
        "someone else has changed this picture meanwhile; reload the page to see it",
    )
    assert Dataset.open(own.path).column("caption")[0] == "another's words"


CHANGE = {"left_out": True}


@pytest.mark.parametrize(
    ("app", "sent"),
    [
        ({"token": TOKEN}, {"token": ""}),
        ({"token": TOKEN}, {"token": TOKEN[:-1]}),
        ({"token": TOKEN}, {"token": TOKEN.upper()}),
        ({"token": TOKEN}, {"origin": "http://elsewhere.example"}),
        ({"token": TOKEN}, {"origin": "null"}),
        ({"token": TOKEN}, {"sec-fetch-site": "cross-site"}),
        ({"token": TOKEN}, {"host": "elsewhere.example"}),
        ({"token": ""}, {"token": ""}),
        ({"token": ""}, {}),
        ({"token": TOKEN, "host": "0.0.0.0"}, {}),
    ],
)
def test_nobody_else_may(data: Dataset, app: dict[str, str], sent: dict[str, str]) -> None:
    version = Dataset.open(data.path).version
    send = sender(asker(browse_app(data.path, embedder_of=embedder_of, **app)), data)  # type: ignore[arg-type]
    status, answer = send(0, CHANGE, **sent)
    assert (status, list(answer)) == (421 if "host" in sent else 403, ["error"])
    assert Dataset.open(data.path).version == version


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (b"", "no JSON object"),
        (b"[1]", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (b"\xff", "no JSON object"),
        ({}, "None is no language code"),
        ({"language": "caption; drop", "text": "x"}, "is no language code"),
        ({"language": "\u0130t", "text": "x"}, "is no language code"),
        ({"language": "en", "text": 7}, "'text'"),
        ({"left_out": "yes"}, "'left_out'"),
        ({"left_uot": True}, "left_out"),
        ({"language": "en", "text": "x" * (2**20 + 1)}, "'text'"),
    ],
)
def test_what_is_no_change_is_one_line(data: Dataset, change: object, words: str) -> None:
    version = Dataset.open(data.path).version
    send = sender(asker(browse_app(data.path, embedder_of=embedder_of, token=TOKEN)), data)
    status, answer = send(0, change)
    assert status == 400, answer
    assert words in answer["error"]
    assert "\n" not in answer["error"]
    assert Dataset.open(data.path).version == version


def test_an_old_version_is_only_looked_at(own: Dataset) -> None:
    client = asker(browse_app(Path(f"{own.path}@{own.version}"), embedder_of=embedder_of, token=TOKEN))
    assert client.get("/api/dataset").json()["editable"] is False
    assert sender(client, own)(0, CHANGE)[0] == 403
    assert (
        asker(browse_app(own.path, embedder_of=embedder_of, token=TOKEN))
        .get("/api/dataset")
        .json()["editable"]
    )
