"""What `datasets` nests: lists of pictures, dicts in dicts, lists of dicts, texts by language, holes in all of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.importing.formats import huggingface
from carrara.importing.importing import import_pictures
from carrara.importing.summary import Summary

from .conftest import png

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ONE = "data-00000-of-00001.arrow"


def image(k: int) -> dict[str, Any]:
    return {"bytes": png(k), "path": None}


def save(folder: Path, schema: pa.Schema, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
    """As ``save_to_disk`` does, in batches of three rows."""
    folder.mkdir(parents=True)
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata(about)
    with pa.ipc.new_stream(str(folder / ONE), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": ONE}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def take_in(source: Path, destination: Path) -> tuple[Dataset, dict[str, str], Summary]:
    *_, last = import_pictures(source, destination, languages="keep", held_out=0)
    assert last.summary is not None
    assert last.done <= last.total
    lines = (destination / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return Dataset.open(destination), {e["file"]: e["reason"] for e in map(json.loads, lines)}, last.summary


@pytest.fixture(autouse=True)
def two_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "ROWS", 2)


@pytest.mark.parametrize("listed", [pa.list_, pa.large_list])
def test_lists_of_pictures(listed: Callable[[pa.DataType], pa.DataType], tmp_path: Path) -> None:
    schema = pa.schema([("images", listed(IMAGE)), ("label", pa.int64()), ("text", pa.string())])
    counts: list[int | None] = [2, 0, None, 1, 3, 2]
    rows, k = [], 0
    for row, count in enumerate(counts):
        inside = None if count is None else [image(k + n) for n in range(count)]
        k += count or 0
        rows.append({"images": inside, "label": row % 2, "text": f"words of {row}"})
    rows[4]["images"][1] = None
    rows[5]["images"][1] = {"bytes": None, "path": "/elsewhere/x.png"}
    features = {"images": {"feature": {"_type": "Image"}, "_type": "List"}, "label": {"names": ["a", "b"]}}
    save(tmp_path / "set", schema, rows, features)
    dataset, why, summary = take_in(tmp_path / "set", tmp_path / "data")
    found = [name.removeprefix(f"{ONE}:") for name in dataset.column("source")]
    assert found == ["0.0", "0.1", "3.0", "4.0", "4.2", "5.0"]
    assert dataset.column("caption") == [f"words of {name[0]}" for name in found]
    assert dataset.column("label") == ["a", "a", "b", "a", "a", "b"]
    assert dataset.column("group") == [f"{ONE}:{name[0]}" for name in found]  # held out together
    assert {name.removeprefix(f"{ONE}:"): reason for name, reason in why.items()} == {
        "1": "the row holds no pictures",
        "2": "the row holds no pictures",
        "4.1": "the row holds no bytes of a picture",
        "5.1": "the row holds no bytes of a picture, only the path '/elsewhere/x.png'",
    }
    assert summary.rejected == 4
    whole = (tmp_path / "set" / ONE).read_bytes()
    (tmp_path / "set" / ONE).write_bytes(whole[: len(whole) * 3 // 4])
    dataset, why, _ = take_in(tmp_path / "set", tmp_path / "cut")
    assert len(dataset) == 2
    assert "rows that cannot be read" in why[f"{ONE}:3"]


def test_a_column_without_a_name_in_letters(tmp_path: Path) -> None:
    save(tmp_path / "set", pa.schema([("images", pa.list_(IMAGE))]), [{"images": [image(1)]}], {})
    path = tmp_path / "set" / ONE
    path.write_bytes(path.read_bytes().replace(b"images\0", b"\xff\xfeages\0"))
    with pytest.raises(UserError, match=r"the columns of .* cannot be read: 'utf-8' codec"):
        take_in(tmp_path / "set", tmp_path / "data")


def test_dicts_within_dicts(tmp_path: Path) -> None:
    deep = pa.struct([("licence", pa.string()), ("label", pa.int64())])
    spoken = pa.struct([("en", pa.string()), ("de", pa.string())])
    schema = pa.schema(
        [
            ("sample", pa.struct([("image", IMAGE), ("caption", spoken)])),
            ("about", pa.struct([("deep", deep), ("n", pa.int8())])),
            ("second", IMAGE),
        ]
    )
    rows: list[dict[str, Any]] = [
        {
            "sample": {"image": image(k), "caption": {"en": f"red {k}", "de": f"rot {k}"}},
            "about": {"deep": {"licence": "MIT", "label": k % 2}, "n": k},
            "second": image(90 + k),
        }
        for k in range(5)
    ]
    rows[1]["sample"], rows[2]["sample"]["caption"], rows[3]["about"] = None, None, {"deep": None, "n": 3}
    features = {
        "sample": {"image": {"_type": "Image"}, "caption": {}},
        "about": {
            "deep": {"licence": {}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}},
            "n": {},
        },
    }
    save(tmp_path / "set", schema, rows, features)
    dataset, why, _ = take_in(tmp_path / "set", tmp_path / "data")
    assert dataset.column("source") == [f"{ONE}:{k}" for k in (0, 2, 3, 4)]
    assert dataset.column("caption_de") == ["rot 0", None, "rot 3", "rot 4"]
    assert dataset.column("caption_en")[0] == "red 0"
    assert dataset.column("label") == ["cat", "cat", None, "cat"]
    assert dataset.column("licence") == ["MIT", "MIT", None, "MIT"]
    assert why == {
        f"{ONE}:1": "the row holds no bytes of a picture",
        ONE: "the column 'second' is not read: pictures are taken from the column 'image' alone",
    }


def test_lists_of_dicts_either_way_round(tmp_path: Path) -> None:
    """As they are, and as older versions of `datasets` turn them: a dict of lists."""
    pair = pa.struct([("image", IMAGE), ("caption", pa.string())])
    lists = pa.struct([("image", pa.list_(IMAGE)), ("caption", pa.list_(pa.string()))])
    rows = [[{"image": image(2 * k + n), "caption": f"{k} {n}"} for n in range(2)] for k in range(3)]
    turned = [{name: [entry[name] for entry in row] for name in ("image", "caption")} for row in rows]
    forms = {"straight": (pa.list_(pair), rows), "turned": (lists, turned)}
    for name, (kind, values) in forms.items():
        save(tmp_path / name, pa.schema([("pair", kind)]), [{"pair": v} for v in values], {})
        dataset, why, _ = take_in(tmp_path / name, tmp_path / f"{name} data")
        assert dataset.column("caption") == [f"{k} {n}" for k in range(3) for n in range(2)], name
        assert dataset.column("source")[3] == f"{ONE}:1.1"
        assert why == {}
