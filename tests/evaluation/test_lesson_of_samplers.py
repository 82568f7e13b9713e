"""`carrara show samplers` says and shows the same of a model whose pictures have 16 bits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from carrara.generation.model import Model, load_model
from carrara.generation.sample import Settings
from carrara.lessons import samplers as lesson
from carrara.lessons.output import Exhibit
from carrara.tensors import from_pixels, to_pixels
from conftest import Trained


def shown(model: Model) -> Exhibit:
    walk = lesson.samplers(model, "red disc", Settings(seed=3), evaluations=[2, 4], names=["ddim"], count=1)
    while True:
        try:
            next(walk)
        except StopIteration as end:
            exhibit: Exhibit = end.value
            return exhibit


def test_sixteen_bits_look_like_eight(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "REFERENCE_STEPS", 6)
    model = load_model(trained.diffusion / "model")
    deep = replace(model, autoencoder=replace(model.autoencoder, bits=16))
    plain, fine = (np.asarray(shown(m).still.convert("RGB"), np.float64) for m in (model, deep))
    assert plain.shape == fine.shape
    assert plain.std() > 10
    assert np.abs(plain - fine).mean() < 1


def test_distances_are_in_steps_of_eight_bits() -> None:
    a, b = torch.randint(0, 256, (2, 3, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    wanted = float((a.double() - b.double()).square().mean().sqrt())
    assert wanted > 50
    assert lesson._distance(a, b) == pytest.approx(wanted, rel=1e-6)
    deep = (to_pixels(from_pixels(x), bits=16) for x in (a, b))
    assert lesson._distance(*deep) == pytest.approx(wanted, rel=1e-6)
