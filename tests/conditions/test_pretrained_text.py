"""Frozen text encoders from folders: what the published models read, cached or not, and what is said of bad folders."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny_encoders
from carrara.conditions import frozen_encoder
from carrara.conditions.frozen_encoder import FAMILIES, EncoderFolder
from carrara.conditions.pretrained_text import Config, PretrainedTextEncoder
from carrara.errors import UserError
from carrara.model_folder import load_into, write_weights
from tiny_encoders import WIDTH, WINDOW

PROMPTS = ["a red disc", "ein rotes Quadrat", "红苹果", "a blue bar that is far longer than any other"]


class Captions:
    """`conditions.contract.Columns` with nothing but captions."""

    def __init__(self, **columns: list[str | None]) -> None:
        self.columns, self.names = columns, list(columns)
        self.captions = {name.removeprefix("caption_"): name for name in columns}

    def values(self, column: str) -> list[str | None]:
        return self.columns[column]


DATA = Captions(caption_en=["a", "b", None, None], caption_de=["A", None, "C", None])


def learned(*paths: Path, **options: Any) -> PretrainedTextEncoder:
    config = Config(paths=tuple(map(str, paths)), **{"length": WINDOW, **options})
    return config.learn(DATA).eval()


def roles(encoder: PretrainedTextEncoder, values: Sequence[Any]) -> dict[str, Tensor]:
    with torch.no_grad():
        return encoder(encoder.prepare(values)).roles()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """CLIP-L and the projected bigG of SDXL in small, which fills up with another token."""
    base = tmp_path_factory.mktemp("clips")
    return {
        "l": (base / "l", tiny_encoders.clip(base / "l")),
        "g": (base / "bigg", tiny_encoders.clip(base / "bigg", projection=12, width=24, pad="!")),
    }


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


# --- what the published models read ---


def test_stable_diffusion_1_reads_all_of_the_window(clips: dict[str, tuple[Path, Any]]) -> None:
    diffusers = pytest.importorskip("diffusers")
    folder, model = clips["l"]
    pipe = diffusers.StableDiffusionPipeline(
        None, model, tokenizer(folder), None, None, None, None, requires_safety_checker=False
    )
    with torch.no_grad():
        theirs, empty = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
        ids = tokenizer(folder)(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
        skipped = model.final_layer_norm(model(ids, output_hidden_states=True).hidden_states[-2])
    ours = roles(learned(folder, padding="read"), [*PROMPTS, None])
    torch.testing.assert_close(ours["tokens"][:4], theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours["tokens"][4], empty[0], rtol=1e-3, atol=1e-3)  # kept in 16 bits
    assert ours["mask"].all()
    assert "vector" not in ours
    # Stable Diffusion 2: the penultimate layer, then the last norm.
    ours = roles(learned(folder, padding="read", layer=-2), PROMPTS)
    torch.testing.assert_close(ours["tokens"], skipped, rtol=0, atol=1e-5)
    assert (skipped - theirs).abs().mean() > 0.01


def test_sdxl_puts_two_encoders_side_by_side(clips: dict[str, tuple[Path, Any]]) -> None:
    diffusers = pytest.importorskip("diffusers")
    (one, first), (two, second) = clips["l"], clips["g"]
    pipe = diffusers.StableDiffusionXLPipeline(
        None, first, second, tokenizer(one), tokenizer(two), None, None, force_zeros_for_empty_prompt=False
    )
    with torch.no_grad():
        theirs, empty, pooled, pooled_empty = pipe.encode_prompt(PROMPTS, None, "cpu", 1, True)
    encoder = learned(one, two, layer=-2, norm=False, pooled="last", padding="read")
    assert (encoder.tokens, encoder.vector) == (WIDTH + 24, 12)
    ours = roles(encoder, [*PROMPTS, None])
    torch.testing.assert_close(ours["tokens"][:4], theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours["vector"][:4], pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours["tokens"][4], empty[0], rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(ours["vector"][4], pooled_empty[0], rtol=1e-3, atol=2e-3)
    assert learned(one, two, pooled="all").vector == WIDTH + 12
    alone = learned(one, two, layer=-2, norm=False, pooled="last", padding="read", tokens=False)
    assert (alone.tokens, alone.vector, alone.null.shape) == (None, 12, (1, 12))
    torch.testing.assert_close(roles(alone, PROMPTS)["vector"], pooled, rtol=0, atol=1e-5)


def test_t5_hides_what_fills_up(tmp_path: Path) -> None:
    """As Imagen reads it: tokens of the last layer, their mean beside the time."""
    model = tiny_encoders.t5(tmp_path / "t5")
    found = tokenizer(tmp_path / "t5")(PROMPTS[:2], padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**found).last_hidden_state
    mask = found.attention_mask.bool()
    ours = roles(learned(tmp_path / "t5", length=30, pooled="last"), [*PROMPTS[:2], None])
    assert ours["tokens"].shape == (3, 30, WIDTH)
    assert ours["mask"].sum(1).tolist() == [*mask.sum(1).tolist(), 1], "of the empty text its end remains"
    for k in range(2):
        torch.testing.assert_close(ours["tokens"][k][ours["mask"][k]], theirs[k][mask[k]], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours["vector"][k], theirs[k][mask[k]].mean(0), rtol=0, atol=1e-5)
    everything = roles(learned(tmp_path / "t5", length=30, padding="read"), PROMPTS[:2])
    assert everything["mask"].all()
    assert everything["tokens"][:, -1].abs().min() > 0


@pytest.mark.parametrize("family", ["mT5", "UMT5", "Bert", "XLMRoberta", "Roberta", "MPNet", "DistilBert"])
def test_every_family_is_read(family: str, tmp_path: Path) -> None:
    if family.upper().endswith("T5"):
        model = tiny_encoders.t5(tmp_path / "e", "MT5" if family == "mT5" else family)
    else:
        model = tiny_encoders.bert(tmp_path / "e", family)
    known = tokenizer(tmp_path / "e")("query: " + PROMPTS[0], return_tensors="pt")
    with torch.no_grad():
        out = model(known.input_ids, attention_mask=known.attention_mask, output_hidden_states=True)
    # The last layer of T5 goes through its norm there; of the others every layer is as it comes.
    for layer, theirs in ((-1, out.last_hidden_state), (-2, out.hidden_states[-2])):
        encoder = learned(tmp_path / "e", layer=layer, norm=layer == -1, prefix="query: ", pooled="last")
        ours = roles(encoder, PROMPTS)
        assert ours["mask"].sum(1)[0] == known.input_ids.shape[1]
        torch.testing.assert_close(ours["tokens"][0][ours["mask"][0]], theirs[0], rtol=1e-4, atol=1e-4)
        mean = out.last_hidden_state[0].mean(0)
        torch.testing.assert_close(ours["vector"][0], mean, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"layer is -4, but .* has 3 layers, down to -3"):
        learned(tmp_path / "e", layer=-4)
    if EncoderFolder(tmp_path / "e").longest is not None:
        with pytest.raises(UserError, match=f"length is {WINDOW + 1}, but .* reads {WINDOW} tokens at most"):
            learned(tmp_path / "e", length=WINDOW + 1)


def test_weights_of_the_whole_clip_and_older_names_are_read(
    clips: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    """A folder of text and vision together, in shards; and Stable Diffusion's, whose tokenizer lies beside."""
    import transformers as hf
    from safetensors.torch import load_file, save_file

    folder, model = clips["g"]
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    both = hf.CLIPConfig(
        text_config=model.config.to_dict(),
        vision_config={**vision, "image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    whole = hf.CLIPModel(both).eval()
    whole.text_model.load_state_dict(model.text_model.state_dict())
    whole.text_projection.load_state_dict(model.text_projection.state_dict())
    whole.save_pretrained(tmp_path / "whole", max_shard_size="20KB")
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) > 1
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "whole")
    expected = roles(learned(folder, pooled="last"), PROMPTS)
    ours = roles(learned(tmp_path / "whole", pooled="last"), PROMPTS)
    torch.testing.assert_close(ours["tokens"], expected["tokens"], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours["vector"], expected["vector"], rtol=0, atol=1e-5)

    plain, _ = clips["l"]
    pipeline, beside = tmp_path / "sd" / "text_encoder", tmp_path / "sd" / "tokenizer"
    pipeline.mkdir(parents=True)
    beside.mkdir()
    shutil.copy(plain / "config.json", pipeline)
    weights = load_file(plain / "model.safetensors")
    named = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in weights.items()}
    save_file(named, pipeline / "model.safetensors", {"format": "pt"})
    pieces = json.loads((plain / "tokenizer.json").read_text())["model"]["vocab"]
    (beside / "vocab.json").write_text(json.dumps(pieces))
    (beside / "merges.txt").write_text("#version: 0.2\n")
    shutil.copy(plain / "tokenizer_config.json", beside)
    expected = roles(learned(plain, padding="read"), PROMPTS)
    torch.testing.assert_close(roles(learned(pipeline, padding="read"), PROMPTS), expected, rtol=0, atol=1e-5)


# --- kept beside the pictures ---


@pytest.mark.parametrize("padding", ["masked", "read"])
def test_what_is_kept_is_what_is_read(clips: dict[str, tuple[Path, Any]], padding: str) -> None:
    encoder = learned(clips["l"][0], clips["g"][0], layer=-2, norm=False, pooled="all", padding=padding)
    (wanted,) = encoder.derivations(["caption_en"])
    assert wanted.column == "caption_en"
    kept = wanted.function([*PROMPTS, None, ""])
    assert kept.dtype == np.float16
    assert kept.shape[1:] == encoder.null.shape == (WINDOW + 1, WIDTH + 24)  # 28 numbers lie in one more row
    assert not kept[4:].any()
    drawn = encoder.draw(
        {"caption_en": torch.from_numpy(kept), "mirrored": torch.zeros(6)}, range(6), stream=1
    )
    blocks = [torch.from_numpy(row) for row in kept[:4]]
    assert [value is None for value in drawn[4:]] == [True, True]
    direct, cached = roles(encoder, [*PROMPTS, None]), roles(encoder, [*blocks, None])
    assert direct.keys() == cached.keys() == {"tokens", "mask", "vector"}
    assert torch.equal(direct["mask"], cached["mask"])
    for name in ("tokens", "vector"):
        torch.testing.assert_close(direct[name], cached[name], rtol=1e-3, atol=1e-3)
        assert torch.equal(direct[name][4], cached[name][4]), "there is one null"
        assert (direct[name][0] - direct[name][1]).abs().mean() > 0.01
    assert [folder._model for folder in encoder.folders] == [None, None], "training on them needs no encoder"
    with pytest.raises(ValueError, match="some captions are words"):
        encoder.prepare([blocks[0], "a"])


def test_keys_change_with_whatever_changes_the_numbers(clips: dict[str, tuple[Path, Any]]) -> None:
    first, second = clips["l"][0], clips["g"][0]
    keys = [
        learned(*paths, **options).derivations(["caption_en"])[0].key
        for paths, options in [
            ([first], {}),
            ([second], {}),
            ([first, second], {}),
            ([second, first], {}),
            ([first], {"layer": -2}),
            ([first], {"norm": False}),
            ([first], {"padding": "read"}),
            ([first], {"pooled": "last"}),
            ([first], {"length": 12}),
            ([first], {"prefix": "query: "}),
        ]
    ]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys)
    one, other = learned(first, dropout=0.5).derivations(["caption_en", "caption_de"])
    assert one.key == keys[0], "how often a caption is dropped does not change it"
    assert one.key != other.key


def test_captions_are_drawn_by_seed_from_what_is_there(clips: dict[str, tuple[Path, Any]]) -> None:
    encoder = learned(clips["l"][0])
    words: dict[str, Any] = {**DATA.columns, "mirrored": torch.zeros(4)}
    derived = {
        d.column: torch.from_numpy(d.function(DATA.columns[d.column]))
        for d in encoder.derivations(DATA.names)
    }
    blocks = {**derived, "mirrored": torch.zeros(4)}
    alike = {
        text: derived[name][k] for name, texts in DATA.columns.items() for k, text in enumerate(texts) if text
    }
    counts: dict[Any, int] = {}
    for first in range(0, 2000, 4):
        seeds = [first, first + 1, first + 2, first + 3]
        drawn, same = encoder.draw(words, seeds, stream=3), encoder.draw(blocks, seeds, stream=3)
        for text, block in zip(drawn, same, strict=True):
            assert (text is None) == (block is None)
            assert text is None or torch.equal(block, alike[text])
        one = {name: values[:1] for name, values in words.items()}
        assert encoder.draw(one, seeds[:1], stream=3) == drawn[:1]
        assert drawn[3] is None
        assert drawn[1] in ("b", None)
        counts[drawn[0]] = counts.get(drawn[0], 0) + 1
    assert counts["a"] / 500 == pytest.approx(0.45, abs=0.06)
    assert counts["A"] / 500 == pytest.approx(0.45, abs=0.06)
    assert counts[None] / 500 == pytest.approx(0.1, abs=0.04)


def test_languages_are_those_of_text(clips: dict[str, tuple[Path, Any]]) -> None:
    folder = str(clips["l"][0])
    assert Config(paths=(folder,), length=12).reads(DATA) == ["caption_de", "caption_en"]
    assert Config(paths=(folder,), length=12, languages=("en",)).reads(DATA) == ["caption_en"]
    with pytest.raises(UserError, match="no captions in 'fr'"):
        Config(paths=(folder,), length=12, languages=("fr",)).reads(DATA)
    with pytest.raises(UserError, match="there is no text encoder at"):
        Config(paths=("nowhere",)).reads(DATA)
    with pytest.raises(UserError, match="needs 'paths'"):
        Config().reads(DATA)
    with pytest.raises(ValueError, match="nothing is left"):
        Config(tokens=False)


def test_tokens_beyond_the_window_are_counted(clips: dict[str, tuple[Path, Any]]) -> None:
    encoder = learned(clips["l"][0], length=12)
    assert encoder.cut("a " * 10) == 0, "start and end are two of the twelve"
    assert encoder.cut("a " * 13) == 3
    assert encoder.remarks("a red") == encoder.remarks(None) == []
    assert encoder.remarks("a " * 13) == [
        "the last 3 tokens of the prompt are beyond the model's window and are not read"
    ]
    assert learned(clips["l"][0], length=12, prefix="ab ").cut("a " * 10) == 2
    cut, whole = roles(encoder, ["a " * 13, "a " * 10])["tokens"]
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-4)


def test_numbers_that_sixteen_bits_cannot_keep_are_refused(tmp_path: Path) -> None:
    model = tiny_encoders.t5(tmp_path / "t5")
    with torch.no_grad():
        model.shared.weight.mul_(1e6)
    model.save_pretrained(tmp_path / "t5")
    assert roles(learned(tmp_path / "t5"), PROMPTS)["tokens"].isfinite().all()
    with pytest.raises(UserError, match=r"beyond 65504.*norm = true"):
        learned(tmp_path / "t5", norm=False)


# --- no chance, no traces ---


def test_encoders_are_no_part_of_the_weights(clips: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    encoder = learned(clips["g"][0], pooled="last")
    assert list(encoder.parameters()) == []
    assert list(encoder.state_dict()) == ["null"]
    for folder in encoder.folders:
        folder.release()
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    first = torch.rand(1)
    before = roles(encoder, PROMPTS)
    with torch.autocast("cpu", torch.bfloat16):
        rough = roles(encoder, PROMPTS)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected), "loading draws no random numbers"
    assert all(torch.equal(before[name], rough[name]) for name in before), "always in full precision"


def test_a_model_keeps_a_reference_that_is_checked(tmp_path: Path) -> None:
    from hashlib import sha256

    folder = tmp_path / "clip"
    tiny_encoders.clip(folder)
    encoder = learned(folder)
    encoder.keep(tmp_path / "model" / "condition_caption")
    write_weights(tmp_path / "w.safetensors", encoder.state_dict())
    kept = json.loads((tmp_path / "model" / "condition_caption" / "references.json").read_text())["encoders"][
        0
    ]
    assert kept["path"] == str(folder)
    assert kept["sha256"]["weights"] == sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (kept["model_type"], kept["layers"], kept["width"]) == ("clip_text_model", 3, WIDTH)
    assert sum(f.stat().st_size for f in (tmp_path / "model").rglob("*") if f.is_file()) < 2000

    again = encoder.config.restore(tmp_path / "model" / "condition_caption")
    load_into(again, tmp_path / "w.safetensors")
    a, b = roles(encoder, [*PROMPTS, None]), roles(again, [*PROMPTS, None])
    assert all(torch.equal(a[name], b[name]) for name in a | b)

    moved = encoder.config.model_copy(update={"paths": (str(tmp_path / "clap"),)})
    with pytest.raises(UserError, match=r"did you mean 'clip'.*change 'paths' in .*model\.toml"):
        moved.restore(tmp_path / "model" / "condition_caption")
    for name, part in (("tokenizer.json", "tokenizer"), ("model.safetensors", "weights")):
        shutil.copytree(folder, tmp_path / part)
        with open(tmp_path / part / name, "ab") as file:
            file.write(b" ")
        other = encoder.config.model_copy(update={"paths": (str(tmp_path / part),)})
        with pytest.raises(UserError, match=f"is not the text encoder .*the SHA-256 of its {part} is"):
            other.restore(tmp_path / "model" / "condition_caption")
    (tmp_path / "model" / "condition_caption" / "references.json").unlink()
    with pytest.raises(UserError, match=r"is incomplete: it lacks condition_caption/references\.json"):
        encoder.config.restore(tmp_path / "model" / "condition_caption")


def test_a_relative_path_holds_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    tiny_encoders.clip(tmp_path / "here" / "clip")
    monkeypatch.chdir(tmp_path / "here")
    encoder = learned(Path("clip"))
    kept = tmp_path / "model" / "condition_caption"
    encoder.keep(kept)
    monkeypatch.chdir(tmp_path / "there")
    (again,) = encoder.config.restore(kept).folders
    assert again.path == (tmp_path / "here" / "clip").resolve()
    tiny_encoders.clip(Path("clip"), width=24)
    with pytest.raises(UserError, match=r"^clip is not the text encoder"):  # what is at the path goes first
        encoder.config.restore(kept)
    shutil.rmtree("clip")
    (tmp_path / "here" / "clip").rename(tmp_path / "here" / "gone")
    with pytest.raises(UserError, match=r"there is no text encoder at clip.*change 'paths' in"):
        encoder.config.restore(kept)
    with pytest.raises(
        UserError, match=r"was trained with 1 text encoders, but 'paths' in its model.toml has 2"
    ):
        encoder.config.model_copy(update={"paths": ("clip", "clip")}).restore(kept)


def test_weights_are_hashed_again_only_when_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    hashed = frozen_encoder._file_hash.__wrapped__
    monkeypatch.setattr(
        frozen_encoder, "_file_hash", lambda file, *of: (read.append(file.name), hashed(file, *of))[1]
    )
    tiny_encoders.clip(tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    encoder = learned(tmp_path / "clip")
    kept = tmp_path / "model" / "condition_caption"
    encoder.keep(kept)
    assert weights.name in read
    read.clear()
    again = encoder.config.restore(kept)
    assert weights.name not in read
    assert "config.json" in read, "what is small is always read"
    assert again.folders[0].hashes == encoder.folders[0].hashes
    again.keep(tmp_path / "copy")
    assert (tmp_path / "copy" / "references.json").read_text() == (kept / "references.json").read_text()
    os.utime(weights, ns=(1, 1))
    encoder.config.restore(kept)
    assert weights.name in read
    before = json.loads((kept / "references.json").read_text())
    for one in before["encoders"]:  # as earlier versions wrote it
        del one["stamps"], one["resolved"]
    (kept / "references.json").write_text(json.dumps(before))
    read.clear()
    encoder.config.restore(kept)
    assert weights.name in read
    weights.parent.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="there is no text encoder at"):
        encoder.config.restore(kept)
    (tmp_path / "moved").rename(weights.parent)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="the SHA-256 of its weights is"):
        encoder.config.restore(kept)


# --- folders that lack something ---


def test_what_a_folder_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="pretrained_text needs 'paths'"):
        Config().learn(DATA)
    base = Path(tiny_encoders.clip_folder())
    for name, message in {
        "config.json": r"lacks config\.json \(it has: model\.safetensors, other, tok",
        "tokenizer.json": r"lacks tokenizer\.json \(it has: config\.json, model\.safetensors, other, tok",
        "model.safetensors": r"lacks model\.safetensors \(it has: .*; pickled weights are not read",
    }.items():
        broken = tmp_path / name.replace(".", "_")
        shutil.copytree(base, broken)
        (broken / name).rename(broken / ("pytorch_model.bin" if "model" in name else "other"))
        with pytest.raises(UserError, match=message):
            learned(broken)
    with pytest.raises(UserError, match=r"there is no text encoder at .*clop; did you mean"):
        learned(base.parent / "clop")
    (tmp_path / "pipeline").mkdir()
    shutil.copytree(base, tmp_path / "pipeline" / "text_encoder")
    with pytest.raises(UserError, match=r"lacks config\.json.*did you mean '.*pipeline/text_encoder'"):
        learned(tmp_path / "pipeline")

    inside = tmp_path / "pipeline" / "text_encoder"
    config = json.loads((inside / "config.json").read_text())
    (inside / "config.json").write_text(json.dumps(config | {"model_type": "berd"}))
    with pytest.raises(UserError, match="holds a 'berd', no known text encoder; did you mean 'bert'"):
        learned(inside)
    (inside / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"its weights do not fit its config\.json, "):
        learned(inside, pooled="last")
    (inside / "config.json").write_text(json.dumps(config))
    (inside / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:3000])
    with pytest.raises(UserError, match="cannot be read: "):
        learned(inside)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'carrara\[pretrained\]'"):
        learned(base)


def test_the_table_of_families_is_what_is_tested() -> None:
    tested = {"mt5", "umt5", "bert", "xlm-roberta", "roberta", "mpnet", "distilbert"}
    assert set(FAMILIES) == tested | {"clip", "clip_text_model", "t5"}
