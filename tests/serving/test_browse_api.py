"""What the page's server answers, and whom it does not answer."""

import io
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from fastapi import HTTPException
from PIL import Image
from starlette.testclient import TestClient

from carrara.dataset.dataset import Dataset
from carrara.importing.importing import import_pictures
from carrara.search.query import Query
from carrara.serving import app, localhost_only, thumbnails
from carrara.serving.app import STATIC, browse_app
from carrara.serving.opened_dataset import Standing
from conftest import run_out
from serving.conftest import HOSTILE, asker, embedder_of, write_source


def get(client: TestClient, address: str, status: int = 200, **asked: object) -> dict[str, object]:
    answer = client.get(address, params=asked)
    assert answer.status_code == status, answer.text
    found: dict[str, object] = answer.json()
    return found


def refusal(client: TestClient, address: str, status: int = 400, **asked: object) -> str:
    line = get(client, address, status, **asked)["error"]
    assert isinstance(line, str)
    assert line
    assert "\n" not in line
    return line


def facets(client: TestClient, **asked: object) -> dict[str, dict[str, int]]:
    found = get(client, "/api/facets", **asked)["facets"]
    return {f["name"]: {v["value"]: v["count"] for v in f["values"]} for f in found}  # type: ignore[attr-defined]


def rows(found: dict[str, object]) -> list[int]:
    return [hit["row"] for hit in found["hits"]]  # type: ignore[attr-defined]


def row_of(data: Dataset, source: str) -> int:
    return [Path(s).name for s in data.column("source")].index(source)


def test_every_count_is_how_many_are_found(client: TestClient, data: Dataset) -> None:
    """Odd values with quotes and signs of patterns among them, and what has no value at all."""
    found = facets(client)
    assert set(found) == {"split", "language", "label", "flags", "has", "licence"}
    assert found["label"] == {"disc": 7, "": 8, "it's 50%_": 8, HOSTILE: 1}
    flags = Counter(word for said in data.column("flags") for word in (said or "").split(" "))
    assert found["flags"] == flags  # an import adds what it sees itself
    assert (flags["rare"], flags["sketch"]) == (8, 16)
    assert found["has"] == {"boxes": 1, "map": 1}
    assert found["language"] == {"ar": 1, "de": 24, "und": 24}
    assert found["licence"] == {"CC0-1.0": 20, "": 4}
    for name, values in found.items():
        for value, count in values.items():
            assert get(client, "/api/search", **{name: value})["total"] == count, (name, value)


def test_choices_narrow_the_others_and_leave_their_own_open(client: TestClient, data: Dataset) -> None:
    chosen = {"label": ["disc", ""], "flags": "sketch"}
    labels, flags = data.column("label"), [f or "" for f in data.column("flags")]
    expected = [k for k in range(24) if labels[k] in ("disc", None) and "sketch" in flags[k].split()]
    found = get(client, "/api/search", **chosen)
    assert rows(found) == expected
    assert 0 < len(expected) < 16
    counts = facets(client, **chosen)
    assert sum(counts["label"].values()) == 16  # all such, whatever their label
    assert sum(counts["split"].values()) == len(expected)
    both = get(client, "/api/search", where=f"width < 21 OR split = 'none' AND id > '{'f' * 64}'", **chosen)
    assert rows(both) == expected
    assert rows(get(client, "/api/search", words="red", limit=100, **chosen)) != []
    assert set(rows(get(client, "/api/search", words="red", limit=100, **chosen))) <= set(expected)
    assert "widht" in refusal(client, "/api/search", where="widht > 3")
    for wrong in ("width > 0) OR (true", "(true", "true --", "label = 'disc"):
        assert "cannot be read" in refusal(client, "/api/search", where=wrong, **chosen)
    assert rows(get(client, "/api/search", where="caption != ')('", **chosen)) == expected
    assert "no captions in 'eo'" in refusal(client, "/api/search", language="eo")
    assert "no picture has 'label'" in refusal(client, "/api/search", has="label")


def test_pages_of_a_listing(client: TestClient) -> None:
    whole = get(client, "/api/search")
    assert (rows(whole), whole["total"], whole["more"]) == (list(range(24)), 24, False)
    second = get(client, "/api/search", limit=10, offset=10)
    assert (rows(second), second["more"]) == (list(range(10, 20)), True)
    assert rows(get(client, "/api/search", offset=10**9)) == []
    for wrong in ({"limit": 0}, {"limit": "many"}, {"offset": -1}, {"limit": 10**6}):
        assert "the page: '" in refusal(client, "/api/search", **wrong)


def test_words_likeness_and_a_picture(client: TestClient, data: Dataset) -> None:
    for words, name in (
        ("red disc", "red-disc-0.png"),
        ("schwarze Scheibe", "black-disc-0.png"),
        ("قرص", "red-disc-0.png"),
    ):
        found = get(client, "/api/search", words=words)
        assert rows(found)[0] == row_of(data, name)
        assert found["hits"][0]["reasons"][0]["way"] == "words"  # type: ignore[index]
    row = row_of(data, "red-disc-0.png")
    alike = get(client, "/api/search", like=row, by="picture", limit=2)
    assert rows(alike)[0] == row_of(data, "red-disc-1.png")
    picture = bytes(data.take([row], ["image"])["image"][0])
    answer = client.post("/api/search", params={"limit": 3}, content=picture).json()
    assert answer["verdict"].startswith("exactly this picture is in the data set, in the split")
    assert answer["hits"][0]["row"] == row
    assert client.post("/api/search", params={"label": "disc"}, content=b"<svg/>").json()["error"] != ""
    assert "train contrastive" in refusal(client, "/api/search", words="x", by="joint")


def test_a_record_says_all_and_near_duplicates_are_told(
    client: TestClient, data: Dataset, source: Path
) -> None:
    row = row_of(data, "red-disc-0.png")
    found = get(client, f"/api/rows/{row}")
    assert {c["language"]: c["text"] for c in found["captions"]} == {  # type: ignore[attr-defined]
        "ar": "قرص أحمر",
        "de": "rote Scheibe",
        "und": "red disc",
    }
    assert [(b["label"], b["left"], b["height"]) for b in found["boxes"]] == [(HOSTILE, 0.1, 0.25)]  # type: ignore[attr-defined]
    assert found["beside"] == ["map"]
    plain = {c["name"]: c["value"] for c in found["columns"]}  # type: ignore[attr-defined]
    assert "group" not in plain  # of a picture alone it is the id, which is told already
    assert (plain["width"], plain["mode"], plain["split"]) == (20, "RGB", data.column("split")[row])
    assert any(d["made"] == "by sees, of image, 67" for d in found["derived"])  # type: ignore[attr-defined]
    assert "no row 24: expected a number from 0 to 23" in refusal(client, "/api/rows/24")
    near = get(client, f"/api/rows/{row}/near")
    assert row not in rows(near)
    assert near["remark"] == ""


def test_pictures_are_only_ever_pictures(client: TestClient, data: Dataset, source: Path) -> None:
    row = row_of(data, "red-disc-0.png")
    name = data.column("id")[row]
    given = client.get(f"/api/pictures/{row}/{name}")
    assert given.content == (source / "red-disc-0.png").read_bytes()
    assert given.headers["content-type"] == "image/png"
    assert "immutable" in given.headers["cache-control"]
    assert "sandbox" in given.headers["content-security-policy"]
    for kind, shade in (("seen", (255, 0, 0)), ("beside/map", None)):
        answer = client.get(f"/api/pictures/{row}/{name}/{kind}", params={"side": 96})
        assert answer.headers["content-type"] == "image/webp"
        picture = Image.open(io.BytesIO(answer.content)).convert("RGB")
        assert picture.size == (20, 20)  # never larger than it is
        if shade:
            assert picture.getpixel((10, 10)) == shade
        else:
            assert len(picture.getcolors() or []) == 3
            assert picture.getpixel((0, 0)) == (0, 0, 0)
    assert "expected one of 96" in refusal(client, f"/api/pictures/{row}/{name}/seen", side=100000)
    assert refusal(client, f"/api/pictures/{row + 1}/{name}", 404) != ""
    assert refusal(client, f"/api/pictures/{row}/{name}/beside/label", 404) != ""
    assert refusal(client, f"/api/pictures/{row}/{name}/beside/depth", 404) != ""
    assert refusal(client, f"/api/pictures/{row}/..%2f..%2fdataset.toml", 404) != ""
    assert refusal(client, f"/api/pictures/{10**30}/{name}", 422) != ""
    for active in (b"<svg onload='x'/>", b"<!doctype html><script>", b"%PDF-1.7", b""):
        assert thumbnails.kind_of(active) == "application/octet-stream"


def test_large_pictures_become_small() -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((700, 350)).convert("RGB").save(file, "JPEG")
    for side in (96, 384):
        found = Image.open(io.BytesIO(thumbnails.seen(file.getvalue(), side)))
        assert found.size == (side, side // 2)
        assert np.asarray(found).std() > 50


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:8000"}, 421),
        ({"host": "192.168.0.9:8000"}, 421),  # it listens on this machine only
        ({"host": ""}, 421),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),  # another server of this machine
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"origin": "http://127.0.0.1:9"}, 403),
        ({"origin": "null"}, 403),
        ({"content-length": str(localhost_only.UPLOAD + 1)}, 413),
    ],
)
def test_who_may_ask(client: TestClient, headers: dict[str, str], status: int) -> None:
    answer = client.get("/api/dataset", headers=headers)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


def test_a_link_to_the_page_may_be_followed(client: TestClient) -> None:
    answer = client.get("/?words=x", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"})
    assert answer.status_code == 200
    assert client.delete("/api/dataset").status_code == 405


def test_other_machines_may_ask_where_it_listens_for_them(data: Dataset) -> None:
    client = asker(browse_app(data.path, embedder_of=embedder_of, host="0.0.0.0", names=["studio"]))
    for host, status in (("192.168.0.9:80", 200), ("Studio:80", 200), ("evil.example", 421)):
        assert client.get("/api/dataset", headers={"host": host}).status_code == status


def test_uploads_end_where_they_are_too_large(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "UPLOAD", 1000)
    sent = []

    def pieces() -> Iterator[bytes]:  # of unknown length, so no header tells
        for _ in range(10):
            sent.append(1)
            yield b"\0" * 400

    answer = client.post("/api/search", content=pieces())
    assert answer.status_code == 413
    assert "MiB" in answer.json()["error"]


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'self';")
    assert {p.name for p in STATIC.iterdir()} == {
        "index.html",
        "page.js",
        "page.css",
        "icon.svg",
        "preact-licence.txt",
    }
    for name in ("page.js", "page.css", "icon.svg"):
        assert f"/{name}" in page.text
        text = client.get(f"/{name}").text
        assert text == (STATIC / name).read_text(encoding="utf-8")
        elsewhere = text.replace("http://www.w3.org/", "").replace("https?:", "")
        assert "http://" not in elsewhere
        assert "https://" not in elsewhere
    for address in ("/page.css/../index.html/x", "/static/browse/page.js", "/%2e%2e/facets.py", "/docs"):
        assert client.get(address).status_code == 404


def test_a_table_that_grows_is_followed_when_the_page_is_loaded_again(tmp_path: Path) -> None:
    source = write_source(tmp_path / "shapes")
    run_out(import_pictures(str(source), tmp_path / "data"))
    client = asker(browse_app(tmp_path / "data", embedder_of=embedder_of))
    assert get(client, "/api/dataset")["pictures"] == 24
    assert get(client, "/api/dataset")["ways"] == ["words"]
    assert "data encode" in str(get(client, "/api/rows/0/near")["remark"])
    assert "data encode" in refusal(client, "/api/search", like=0, by="picture")
    Image.new("RGB", (30, 20), "pink").save(source / "pink.png")
    (source / "pink.txt").write_text("unheard-of pink")
    run_out(import_pictures(str(source), tmp_path / "data"))
    assert get(client, "/api/search")["total"] == 24
    assert get(client, "/api/dataset")["pictures"] == 25
    assert get(client, "/api/search")["total"] == 25
    assert rows(get(client, "/api/search", words="pink"))[0] == 24
    assert facets(client)["language"]["und"] == 25


def test_a_data_set_that_may_only_be_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out(import_pictures(str(source), tmp_path / "data"))

    def refused(*_: object) -> None:
        raise OSError("Permission denied")

    monkeypatch.setattr("carrara.search.indexes.committed", refused)
    client = asker(browse_app(tmp_path / "data", embedder_of=embedder_of))
    found = get(client, "/api/search", words="red disc")
    assert rows(found)[0] == row_of(Dataset.open(tmp_path / "data"), "red-disc-0.png")
    assert any("Permission denied" in remark for remark in found["remarks"])  # type: ignore[attr-defined]


def test_a_search_leaves_the_handle_of_other_requests_as_it_is(source: Path, tmp_path: Path) -> None:
    run_out(import_pictures(str(source), tmp_path / "data"))
    standing = Standing(tmp_path / "data", embedder_of)
    before = standing.dataset
    version = before.version
    assert len(standing.found(Query(words="red")).hits) > 0
    assert standing.dataset is not before
    assert before.version == version < standing.dataset.version


@pytest.mark.parametrize("ask", ["/api/search", "/api/facets"])
def test_a_condition_of_the_page_is_as_narrow_as_one_of_the_command_line(
    client: TestClient, ask: str
) -> None:
    assert "it calls 'repeat'" in refusal(client, ask, where="repeat('a', 3) = label")
    assert get(client, ask, where="length(caption) > 3")


def test_uploads_that_do_not_end_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        async def stream(self) -> AsyncIterator[bytes]:
            yield b"a picture"
            await anyio.sleep(9)

    refused: list[int] = []

    async def send(limiter: anyio.CapacityLimiter) -> None:
        try:
            await app._body(Slow(), limiter)  # type: ignore[arg-type]
        except HTTPException as error:
            refused.append(error.status_code)

    async def all_at_once() -> None:
        limiter = anyio.CapacityLimiter(2)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(send, limiter)
        assert limiter.borrowed_tokens == 0

    monkeypatch.setattr(app, "SECONDS", 0.05)
    anyio.run(all_at_once)
    assert refused == [503, 503, 503, 408, 408]


def test_a_data_set_that_is_removed_under_the_server(data: Dataset, tmp_path: Path) -> None:
    shutil.copytree(data.path, tmp_path / "d")
    with asker(app.browse_app(tmp_path / "d", embedder_of=embedder_of)) as client:
        row = get(client, "/api/search")["hits"][0]  # type: ignore[index]
        shutil.rmtree(tmp_path / "d")
        picture = f"/api/pictures/{row['row']}/{row['id']}"
        for asked in (
            "search", "search?words=red", "search?where=width>3", "search?like=1", "facets", "facets?label=disc",
            "rows/1", "rows/1/near", "dataset", f"{picture[5:]}", f"{picture[5:]}/seen",
        ):  # fmt: skip
            answer = client.get(f"/api/{asked}")
            assert answer.status_code in (400, 503), asked
            line = answer.json()["error"]
            assert any(
                words in line for words in ("there is no data set", "is not there", "moved or removed?")
            ), asked


def test_pictures_of_one_name_say_from_which_folder_they_come(tmp_path: Path) -> None:
    for k, folder in enumerate(("beach", "hills")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 40), (k, 9, 9)).save(tmp_path / folder / "IMG_1.png")
        Image.new("RGB", (40, 40), (7, 9, 9)).save(tmp_path / folder / f"copy{k}.png")
        list(import_pictures(tmp_path / folder, tmp_path / "data"))
    client = asker(browse_app(tmp_path / "data", embedder_of=embedder_of))
    hits: Any = get(client, "/api/search")["hits"]
    found = [(hit["source"], Path(hit["from"]).name) for hit in hits]
    assert found == [("copy0.png", "beach"), ("IMG_1.png", "beach"), ("IMG_1.png", "hills")]
    columns: Any = get(client, "/api/rows/2")["columns"]
    plain = {c["name"]: c["value"] for c in columns}
    assert plain["from"] == str(tmp_path / "hills")
    assert "origin" not in plain
    (line,) = (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()
    listed = json.loads(line)
    assert (listed["from"], listed["of"]) == (str(tmp_path / "hills"), str(tmp_path / "beach"))
    assert listed["reason"] == "the same picture as copy0.png"
