"""Pictures of any ratio at sizes of about one area: which, in which order, and how they are loaded and encoded."""

from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.autoencoders import kl
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.dataset import latents
from carrara.dataset.buckets import assign, buckets
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, column_name, derive, derived
from carrara.dataset.loader import Bucket, Loaded, Reading, load
from carrara.dataset.order import Bucketed, bucketed, sample_seeds
from carrara.errors import UserError
from carrara.images.decode import pixels, window
from carrara.importing.importing import import_pictures

SIZES = [(16, 8), (12, 12), (8, 16)]


@pytest.mark.parametrize(("size", "multiple"), [(64, 8), (96, 8), (512, 64), (1024, 64), (8, 8)])
def test_buckets_have_about_one_area_and_no_more_than_the_ratio(size: int, multiple: int) -> None:
    found = buckets(size, multiple)
    assert (size, size) in found
    assert len(set(found)) == len(found)
    assert found == [(w, h) for h, w in reversed(found)]  # lying ones as standing ones
    assert all(a[1] / a[0] < b[1] / b[0] for a, b in pairwise(found))
    for height, width in found:
        assert height % multiple == width % multiple == 0
        assert max(height, width) <= 2 * min(height, width)
        # No other multiple for the long side is nearer to the area.
        long, short = max(height, width), min(height, width)
        assert abs(long - size * size / short) <= multiple / 2


def test_more_ratios_are_offered_where_they_are_asked_for() -> None:
    assert buckets(64, 8, most=1) == [(64, 64)]
    assert (128, 32) in buckets(64, 8, most=4)
    for wrong in ({"size": 60, "multiple": 8}, {"size": 64, "multiple": 8, "most": 0.5}):
        with pytest.raises(ValueError, match="expected"):
            buckets(**wrong)  # type: ignore[arg-type]


def test_a_picture_belongs_to_the_nearest_ratio() -> None:
    widths, heights = [100, 50, 100, 200, 71, 4000, 70], [100, 100, 50, 100, 100, 10, 100]
    assert assign(widths, heights, SIZES).tolist() == [1, 0, 2, 2, 1, 2, 0]  # 1 : sqrt(2) lies between


ROWS = [np.arange(0, 11), np.arange(100, 103), np.array([200])]


def some(count: int, *, start: int = 0, seed: int = 3, batch: int = 4) -> list[tuple[list[int], int]]:
    found = bucketed(ROWS, batch=batch, seed=seed, start=start)
    return [(b.rows.tolist(), b.bucket) for b in islice(found, count)]


def test_every_batch_is_from_one_bucket_and_every_epoch_has_every_picture() -> None:
    epochs = [some(5, start=20 * k) for k in range(6)]  # of 3 + 1 + 1 batches
    for epoch in epochs:
        assert sorted(bucket for _, bucket in epoch) == [0, 0, 0, 1, 2]
        assert all(set(rows) <= set(ROWS[bucket].tolist()) for rows, bucket in epoch)
        assert {row for rows, _ in epoch for row in rows} == {r for rows in ROWS for r in rows.tolist()}
        of_first = [row for rows, bucket in epoch for row in rows if bucket == 0]
        assert sorted(of_first.count(r) for r in range(11)) == [1] * 10 + [2]  # filled up by one
    assert len({tuple(bucket for _, bucket in epoch) for epoch in epochs}) > 2  # mixed otherwise each time
    assert len({tuple(rows) for epoch in epochs for rows, bucket in epoch if bucket == 0}) > 15
    assert some(5, seed=4) != epochs[0]


def test_the_order_in_buckets_is_looked_up_and_resumes_anywhere() -> None:
    whole = some(40)
    for start in (4, 20, 52, 100):
        assert some(10, start=start) == whole[start // 4 : start // 4 + 10]
    far = Bucketed(ROWS, batch=4, seed=3).at(4 * 10**11)  # replaying it would take days
    assert far.seeds.tolist() == sample_seeds(3, np.arange(far.seen, far.seen + 4)).tolist()
    with pytest.raises(ValueError, match="no whole number of batches"):
        next(bucketed(ROWS, batch=4, seed=3, start=6))
    with pytest.raises(ValueError, match="no rows"):
        next(bucketed([[1], []], batch=4, seed=3))


def test_a_picture_covers_its_bucket_and_is_cropped() -> None:
    assert window((30, 20), (10, 10)) == (5, 0, 25, 20)
    assert window((30, 20), (8, 16)) == (0, 2.5, 30, 17.5)
    assert window((30, 20), (16, 8), "start") == (0, 0, 10, 20)
    assert window((30, 20), (16, 8), "end") == (20, 0, 30, 20)
    across = Image.fromarray(np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None], 20, 0))
    import io

    file = io.BytesIO()
    across.save(file, "PNG")
    standing = pixels(file.getvalue(), (20, 10), 1)
    assert standing.shape == (1, 20, 10)
    assert standing[0, 5].tolist() == list(range(80, 160, 8))  # the middle, not squeezed
    deep = pixels(file.getvalue(), (20, 10), 1, bits=16)
    assert torch.equal(deep.int(), standing.int() * 257)
    assert pixels(file.getvalue(), (20, 30), 1)[0, 0].tolist() == list(range(0, 240, 8))
    assert pixels(file.getvalue(), (8, 16), 3).shape == (3, 8, 16)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Twelve pictures of three ratios, four of each."""
    draw = np.random.default_rng(0)
    (tmp_path / "source").mkdir()
    for k in range(12):
        height, width = [(40, 20), (30, 30), (16, 32)][k % 3]
        numbers = draw.integers(0, 256, (height // 2, width // 2, 3), np.uint8)
        Image.fromarray(numbers).resize((width, height)).save(tmp_path / "source" / f"{k}.png")
    list(import_pictures(tmp_path / "source", tmp_path / "data", held_out=0))
    return Dataset.open(tmp_path / "data")


def in_buckets(dataset: Dataset) -> list[Bucket]:
    rows = dataset.indices("train")
    widths, heights = (np.array(dataset.column(c)) for c in ("width", "height"))
    which = assign(widths[rows], heights[rows], SIZES)
    return [Bucket(rows[which == k], size) for k, size in enumerate(SIZES)]


def read(dataset: Dataset, buckets: list[Bucket], count: int, *names: str, **more: Any) -> list[Loaded]:
    loading = load(dataset, Reading(names), batch=3, seed=1, buckets=buckets, **more)
    found = list(islice(loading, count))
    loading.close()
    return found


def test_batches_come_at_the_size_of_their_bucket(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = in_buckets(dataset)
    assert [len(part.rows) for part in parts] == [4, 4, 4]
    batches = read(dataset, parts, 9, "image", "width")
    assert {b.bucket for b in batches} == {0, 1, 2}
    for batch in batches:
        image = torch.as_tensor(batch.columns["image"])
        assert image.shape[2:] == SIZES[batch.bucket]
        assert torch.equal(image, dataset.pictures(batch.rows, SIZES[batch.bucket]))
        assert set(torch.as_tensor(batch.columns["width"]).tolist()) == {(20, 30, 32)[batch.bucket]}
    late = read(dataset, parts, 4, "image", start=15)
    monkeypatch.setattr("carrara.dataset.loader.IN_MEMORY", 0)
    for ours, again in zip(late, read(dataset, parts, 9, "image")[5:], strict=True):
        assert (ours.rows == again.rows).all()
        assert torch.equal(torch.as_tensor(ours.columns["image"]), torch.as_tensor(again.columns["image"]))
    with pytest.raises(ValueError, match="their own rows and sizes"):
        load(dataset, Reading(["image"], size=8), batch=3, seed=1, buckets=parts)


def test_a_column_for_some_rows_only(dataset: Dataset) -> None:
    rows, key = np.array([1, 4, 7]), {"v": 1}

    def means(columns: Any) -> np.ndarray[Any, Any]:
        mean: np.ndarray[Any, Any] = torch.as_tensor(columns["image"]).float().mean((2, 3)).half().numpy()
        return mean

    for wanted, asked in ((rows, rows), (np.array([0, 1, 11]), np.array([0, 1, 4, 7, 11]))):
        *_, last = derive(
            dataset, Derivation("mean", key, means, batch=2, reading=Reading(size=(8, 16))), rows=wanted
        )
        assert last.column == column_name("mean", key) == derived(dataset, "mean", key, asked)
        assert derived(dataset, "mean", key) is None  # not for every row
        assert derived(dataset, "mean", key, np.array([2])) is None
    got = dataset.column(column_name("mean", key))
    there = [k for k, value in enumerate(got) if value is not None]
    assert there == [0, 1, 4, 7, 11]
    want = dataset.pictures(there, (8, 16)).float().mean((2, 3)).half()
    assert want.std() > 1
    assert torch.equal(torch.tensor([got[k] for k in there]).half(), want)
    batch = next(load(dataset, Reading([column_name("mean", key)]), batch=3, seed=0, rows=rows))
    assert torch.as_tensor(batch.columns[column_name("mean", key)]).shape == (3, 3)


def test_latents_of_buckets_share_a_name(dataset: Dataset) -> None:
    torch.manual_seed(0)
    config = kl.Config(channels=8, multipliers=(1, 2), blocks=1, middle_attention=False)
    autoencoder = StoredAutoencoder.of(config.build().eval(), config, 12, {})
    wanted = latents.variants(True, 1)
    parts = []
    for part in in_buckets(dataset):
        for variant in wanted:
            where: Any = {"rows": part.rows, "size": part.size}
            assert latents.encoded(dataset, autoencoder, [variant], **where) is None
            list(latents.encode(dataset, autoencoder, torch.device("cpu"), variant=variant, **where))
        columns = latents.encoded(dataset, autoencoder, wanted, rows=part.rows, size=part.size)
        assert columns is not None
        named = {f"latent.{k}": column for k, column in enumerate(columns)}
        parts.append(Bucket(part.rows, part.size, named))
    assert len({column for part in parts for column in part.columns.values()}) == 6
    assert latents.encoded(dataset, autoencoder, wanted) is None  # the squares of every picture are not there
    key = latents.latent_key(autoencoder)
    assert (
        latents.latent_key(autoencoder, size=(12, 12)) == key != latents.latent_key(autoencoder, size=(8, 16))
    )
    for batch in read(dataset, parts, 6, "latent.0", "latent.1"):
        height, width = SIZES[batch.bucket]
        plain, flipped = (torch.as_tensor(batch.columns[f"latent.{k}"]) for k in (0, 1))
        assert plain.shape[2:] == (height // 2, width // 2)
        image = dataset.pictures(batch.rows, (height, width)).float() / 127.5 - 1
        with torch.inference_mode():
            expected = autoencoder.module.encode(image).mean  # type: ignore[operator]
            mirrored = autoencoder.module.encode(image.flip(-1)).mean  # type: ignore[operator]
        assert torch.allclose(plain[:, : expected.shape[1]].float(), expected, atol=2e-3)
        assert torch.allclose(flipped[:, : expected.shape[1]].float(), mirrored, atol=2e-3)
    scale = latents.measured_scale(dataset, ["latent.0", "latent.1"], parts)
    every = [
        torch.tensor(dataset.take(part.rows, [column])[column]).reshape(
            len(part.rows), 2, config.latent_channels, -1
        )
        for part in parts
        for column in part.columns.values()
    ]
    mean = torch.cat([m[:, 0].transpose(0, 1).flatten(1) for m in every], 1).double().mean(1)
    assert torch.allclose(scale.mean.double(), mean, atol=1e-5)


def test_an_empty_choice_of_rows_is_told(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="has no pictures in the rows to train on; it has 12 in all"):
        load(dataset, Reading(["label"]), batch=2, seed=0, rows=np.array([], np.int64))
