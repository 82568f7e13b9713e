"""A bit that turned on the disk is seen: in pictures by their ids, in weights by the hashes beside them."""

import re
from pathlib import Path

import pytest
import torch

from carrara.cli.versions import data_clean
from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.exporting.exporting import export_pictures, exporters
from carrara.importing.importing import import_pictures
from carrara.model_folder import HASHES, UNCHECKED, read_weights, write_folder, write_weights
from carrara.training import checkpoint

from .conftest import png


def turn_a_bit(data: Path, picture: bytes) -> None:
    """In the middle of a picture, wherever the table keeps its bytes."""
    for file in sorted((data / "pictures.lance" / "data").iterdir()):
        content = bytearray(file.read_bytes())
        if (place := content.find(picture)) >= 0:
            content[place + len(picture) // 2] ^= 4
            file.write_bytes(content)
            return
    raise AssertionError("the table keeps its pictures otherwise")


@pytest.fixture
def rotten(tmp_path: Path) -> Path:
    (source := tmp_path / "source").mkdir()
    for k in range(4):
        (source / f"{k}.png").write_bytes(png(k))
    (source / "3.map.png").write_bytes(png(9, (12, 10), "L"))
    list(import_pictures(source, tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize("form", sorted(exporters()))
def test_no_export_of_a_damaged_picture(form: str, rotten: Path, tmp_path: Path) -> None:
    turn_a_bit(rotten, png(2))
    with pytest.raises(
        UserError, match=r"data: the image of '2.png' is damaged: .*--where \"id NOT IN"
    ) as why:
        list(export_pictures(Dataset.open(rotten), tmp_path / "out", form))
    assert not (tmp_path / "out").exists()
    condition = re.search(r'--where "(.*)"`', str(why.value))
    assert condition is not None
    assert Dataset.open(rotten).indices(None, condition[1]).tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("damaged", "name"), [(png(0), "0.png"), (png(9, (12, 10), "L"), "3.png")], ids=["image", "map"]
)
def test_verify(damaged: bytes, name: str, rotten: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_clean(rotten, verify=True)
    assert "verified: all 4 pictures are what was imported" in capsys.readouterr().out
    turn_a_bit(rotten, damaged)
    with pytest.raises(UserError, match=rf"1 of 4 pictures are damaged \({name}\)"):
        data_clean(rotten, verify=True)
    assert "cleaned" not in capsys.readouterr().out


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "m", lambda part: write_weights(part / "w.safetensors", {"a": torch.ones(9)}))
    file = tmp_path / "m" / "w.safetensors"
    assert read_weights(file)["a"].tolist() == [1] * 9
    flip(file)
    with pytest.raises(
        UserError, match=r"w.safetensors is damaged: its bytes are not those that were written"
    ):
        read_weights(file)
    monkeypatch.setenv(UNCHECKED, "1")
    assert read_weights(file)["a"].tolist() != [1] * 9
    monkeypatch.delenv(UNCHECKED)
    (file.parent / HASHES).unlink()  # a folder of before
    assert read_weights(file)["a"].shape == (9,)


def test_checkpoints(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 12, {"a": torch.ones(9)}, {"step": 111})
    assert checkpoint.load(path)[1] == {"seen": 12, "step": 111}
    flip(path / "state.safetensors")
    with pytest.raises(checkpoint.Damaged, match=r"state\.safetensors is damaged"):
        checkpoint.load(path)
