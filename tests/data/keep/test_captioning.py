"""Captioners of all three kinds; whatever one does, what it said before is kept."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from carrara.cleaning import captioning
from carrara.cleaning.captioning import OfColumns, Progress, Stopped, caption, from_python, to_name
from carrara.cli.clean import data_caption
from carrara.dataset.dataset import Dataset
from carrara.dataset.word_changes import amend
from carrara.errors import UserError
from carrara.importing.importing import import_pictures

PLUGIN = """
import pathlib

calls = 0

def caption(images):
    global calls
    calls += len(images)
    if calls > 20 and pathlib.Path({stop!r}).exists():
        raise RuntimeError("no memory\\nleft")
    return [f" {{image.mode}} {{image.width}} wide " for image in images]
"""


@pytest.fixture
def dataset(folder: Path, tmp_path: Path) -> Dataset:
    """Thirty pictures, of which the first three have an English caption of their source's."""
    for path in sorted(folder.glob("*.txt")):
        path.unlink()
    for k in range(3):
        (folder / f"x{k}.en.txt").write_text(f"mine {k}")
    list(import_pictures(folder, tmp_path / "data", held_out=0))
    return Dataset.open(tmp_path / "data")


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my captioner.py"
    path.write_text(PLUGIN.format(stop=str(tmp_path / "stop")))
    return path


def test_a_captioner_that_fails_loses_nothing(
    dataset: Dataset, plugin: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = plugin.parent / "stop"
    stop.touch()
    with pytest.raises(
        Stopped, match=r"failed at rows .*: RuntimeError: no memory left; the 20 captions before"
    ):
        data_caption(dataset.path, captioner=str(plugin), batch=5)
    dataset.refresh()
    assert dataset.table.count_rows(filter="caption_en IS NOT NULL") == 23
    stop.unlink()
    data_caption(dataset.path, captioner=str(plugin), batch=5, as_json=True)
    assert json.loads(capsys.readouterr().out)["captioned"] == 7
    dataset.refresh()
    texts = dict(zip(dataset.column("source"), dataset.column("caption_en"), strict=True))
    assert texts["x1.png"] == "mine 1"
    assert texts["x20.png"] == "RGB 12 wide"
    who = dict(zip(dataset.column("source"), dataset.column("captioned_by"), strict=True))
    assert (who["x1.png"], who["x20.png"]) == (None, "en:my-captioner")
    data_caption(dataset.path, captioner=str(plugin))
    assert "nothing to do" in capsys.readouterr().out
    data_caption(dataset.path, from_columns="{width} by {height}", language="de")
    data_caption(dataset.path, from_columns="wide: {width}", every=True)
    dataset.refresh()
    assert set(dataset.column("caption_de")) == {"12 by 10"}
    assert set(dataset.column("caption_en")) == {"wide: 12"}
    assert set(dataset.column("captioned_by")) == {"de:columns en:columns"}
    (folder / "x0.en.txt").write_text("another word of the source")  # which leaves alone what was set here
    list(import_pictures(folder, dataset.path, held_out=0))
    dataset.refresh()
    assert set(dataset.column("caption_en")) == {"wide: 12"}


def test_killed_it_goes_on_after_the_last_batch(dataset: Dataset, plugin: Path) -> None:
    rows = to_name(dataset, "en", every=False)
    assert len(rows) == 27
    speaker = from_python(dataset, str(plugin))
    reports = caption(dataset, speaker, rows, "en", batch=4)
    while next(reports).done < 12:
        pass
    with pytest.raises(UserError, match="another process is"):
        next(caption(dataset, speaker, rows, "en"))
    reports.close()  # as a kill does: nothing was written into the table
    (journal,) = (dataset.path / "caption.partial").iterdir()
    with open(journal, "a") as file:
        file.write('{"said": {"torn')
    dataset.refresh()
    assert dataset.table.count_rows(filter="caption_en IS NOT NULL") == 3
    asked: list[int] = []

    class Counting:
        name, key = speaker.name, speaker.key

        def caption(self, rows: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> list[str | None]:
            asked.extend(rows.tolist())
            return [None if row == rows[0] else "said" for row in rows]

    last = list(caption(dataset, Counting(), rows, "en", batch=4))[-1]
    assert asked == rows[12:].tolist()
    assert (last.done, last.kept, last.empty) == (27, 23, 4)
    assert not journal.parent.exists()
    assert dataset.table.count_rows(filter="caption_en IS NULL") == 4


def test_all_goes_on_after_a_failure(dataset: Dataset, plugin: Path) -> None:
    stop = plugin.parent / "stop"
    stop.touch()
    with pytest.raises(Stopped, match="the 20 captions before are kept"):
        data_caption(dataset.path, captioner=str(plugin), batch=5, every=True)
    dataset.refresh()
    assert dataset.table.count_rows(filter="caption_en = 'RGB 12 wide'") == 20
    amend(dataset, {"caption_en": {3: "of a person"}})  # in between, for what was named before
    stop.unlink()
    asked: list[int] = []
    speaker = from_python(dataset, str(plugin))
    speaker = replace(speaker, name_them=lambda images: asked.append(len(images)) or ["later"] * len(images))
    *_, last = caption(dataset, speaker, to_name(dataset, "en", every=True), "en", batch=5)
    assert (sum(asked), last) == (
        10,
        Progress.of(30, 30, "10 captioned", title="captioning", kept=10, empty=0),
    )
    assert Counter(dataset.column("caption_en")) == {"RGB 12 wide": 19, "of a person": 1, "later": 10}
    assert not (dataset.path / "caption.partial").exists()


def test_what_was_said_is_not_counted_anew_after_every_batch(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    class Counting(captioning.Said):
        __slots__ = ()

        @property
        def text(self) -> str | None:  # type: ignore[override]
            nonlocal looks
            looks += 1
            return self[0]

    monkeypatch.setattr(captioning, "Said", Counting)
    rows = to_name(dataset, "de", every=False)
    *_, last = caption(dataset, OfColumns(dataset, "{width} wide"), rows, "de", batch=1)
    assert (last.done, last.total, last.kept, last.empty) == (30, 30, 30, 0)
    assert 30 <= looks <= 5 * 30  # of thirty batches: a few times each


def test_what_another_said_before_a_kill_is_not_believed(dataset: Dataset, plugin: Path) -> None:
    rows = to_name(dataset, "de", every=False)
    first, second = (OfColumns(dataset, sentence) for sentence in ("{width} wide", "{height} high"))
    begun = caption(dataset, first, rows, "de", batch=10)
    assert [next(begun).done for _ in range(3)] == [0, 10, 20]
    begun.close()
    *_, last = caption(dataset, second, rows, "de")
    assert (last.done, last.total, last.kept, last.empty) == (30, 30, 30, 0)
    assert set(dataset.column("caption_de")) == {"10 high"}
    again = caption(
        dataset, first, rows, "de", batch=10
    )  # which is still known, but is not what is there now
    assert next(again).done == 20
    assert list(again)[-1].overtaken == 20
    assert Counter(dataset.column("caption_de")) == {"10 high": 20, "12 wide": 10}
    before = from_python(dataset, str(plugin))
    plugin.write_text(plugin.read_text() + "\n")
    assert before.key != from_python(dataset, str(plugin)).key


@pytest.mark.parametrize("every", [False, True])
def test_words_of_others_meanwhile_are_left_alone(every: bool, dataset: Dataset, folder: Path) -> None:
    rows = to_name(dataset, "en", every=every)
    reports = caption(dataset, OfColumns(dataset, "{width} wide"), rows, "en", batch=10)
    while next(reports).done < len(rows):
        pass
    (folder / "x20.en.txt").write_text("the source's")
    list(import_pictures(folder, dataset.path, held_out=0))
    other = Dataset.open(dataset.path)
    at = other.column("source").index("x21.png")
    amend(other, {"caption_en": {at: "a person's"}})
    last = next(reports)
    assert (last.kept, last.overtaken) == (len(rows) - 2, 2)
    texts = dict(zip(dataset.column("source"), dataset.column("caption_en"), strict=True))
    assert (texts["x20.png"], texts["x21.png"], texts["x22.png"]) == ("the source's", "a person's", "12 wide")
    assert texts["x1.png"] == ("12 wide" if every else "mine 1")
    who = dict(zip(dataset.column("source"), dataset.column("captioned_by"), strict=True))
    assert (who["x20.png"], who["x21.png"], who["x22.png"]) == (None, None, "en:columns")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("def caption(images): return 'one text'", "it gave a str for"),
        ("def caption(images): return ['x']", "it gave 1 texts for 27 pictures"),
        ("def caption(images): return [1] * len(images)", "it gave a int as a caption"),
        ("def name(images): return []", "has no function caption"),
        ("import nothing_like_it", "cannot be used as a captioner: ModuleNotFoundError"),
        ("raise SystemError('so')", "SystemError: so"),
    ],
)
def test_programs_that_are_none(dataset: Dataset, tmp_path: Path, program: str, words: str) -> None:
    (tmp_path / "own.py").write_text(program)
    with pytest.raises(UserError, match=words):
        data_caption(dataset.path, captioner=str(tmp_path / "own.py"), batch=30)
    assert dataset.table.count_rows(filter="caption_en IS NOT NULL") == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give either --with or --from-columns"),
        ({"captioner": "x", "from_columns": "{label}"}, "either --with"),
        ({"from_columns": "{lable}"}, "no column 'lable' for the sentence; did you mean 'label'"),
        ({"from_columns": "{width:>9}"}, "a column's name alone in braces"),
        ({"from_columns": "{width"}, "cannot be read"),
        ({"from_columns": "words"}, "names no column in braces"),
        ({"from_columns": "{width}", "language": "plain english"}, "is no language"),
        ({"captioner": "nowhere.py"}, "there is no file nowhere.py"),
        ({"captioner": "no_such_module"}, "cannot be used as a captioner"),
    ],
)
def test_what_cannot_be_is_said(dataset: Dataset, options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        data_caption(dataset.path, **options)  # type: ignore[arg-type]


@pytest.fixture
def blip(tmp_path: Path) -> Path:
    """A BLIP of some thousand weights that knows eleven words."""
    pytest.importorskip("transformers")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "cat", "picture", "of"]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", bos_token="[DEC]"
    )
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "projection_dim": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    config = BlipConfig(
        text_config={
            **small,
            "vocab_size": len(words),
            "encoder_hidden_size": 16,
            "max_position_embeddings": 64,
            "bos_token_id": 5,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    BlipForConditionalGeneration(config).save_pretrained(tmp_path / "my blip")
    eye = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(image_processor=eye, tokenizer=fast).save_pretrained(tmp_path / "my blip")
    return tmp_path / "my blip"


def test_a_folder_of_transformers(dataset: Dataset, blip: Path, tmp_path: Path) -> None:
    data_caption(dataset.path, captioner=str(blip), language="fr")
    dataset.refresh()
    words = " ".join(text for text in dataset.column("caption_fr") if text).split()
    assert len(words) > 30
    assert set(words) <= set(["[UNK]", "[MASK]", "a", "red", "cat", "picture", "of"])
    (who,) = set(dataset.column("captioned_by")) - {None}
    assert who.startswith("fr:my-blip-")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no captioner: expected config"):
        data_caption(dataset.path, captioner=str(tmp_path / "empty"))
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a captioner"):
        data_caption(dataset.path, captioner=str(tmp_path / "empty"))
