"""`carrara data encode`, `train contrastive` and `data search` as a user runs them, one after another."""

import json
from pathlib import Path

import pytest
from PIL import Image

from carrara.config import to_toml
from carrara.dataset.dataset import Dataset
from carrara.recipes.catalogue import named
from carrara.training.recipe import ContrastiveRecipe
from conftest import Here


def test_from_import_to_search(here: Here, pictures: Path, tmp_path: Path) -> None:
    assert here("data", "import", pictures, "data", "--held-out", 0.2).status == 0
    words = here("data", "search", "data", "grün scheibe")
    assert words.status == 0, words.err
    assert "green disc" in words.out
    assert "note: not searched by meaning" in words.out
    assert "3 of" not in here("data", "search", "data", "no such words").out
    chosen = [
        "--set", "texts=ngrams", "--set", "towers={hidden=32, width=16}", "--set", "train.batch=16",
        "--set", "train.precision=fp32", "--set", "train.warmup=2", "--set", "train.lr=3e-3",
    ]  # fmt: skip
    train = here("train", "contrastive", "data", "--out", "run", "--budget", "60steps", *chosen)
    assert train.status == 0, train.err
    assert "efficientnet_lite0: pictures encoded, as the column seen_" in train.out
    assert "text to picture" in train.out
    assert "next: carrara data encode data --embedder run" in train.out
    examined = here("doctor", "run", "data", "--json")
    checks = {check["check"]: check for check in json.loads(examined.out)["checks"]}
    assert not any(check["skipped"] for check in checks.values()), checks
    assert "held-out pairs" in checks["pairs find each other"]["saw"]
    assert checks["spread of the space"]["findings"] == []
    assert checks["amount of data"]["findings"][0]["name"] == "few_pairs"
    assert examined.status == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 less the mean reciprocal rank" in page
    assert "noise" not in page
    done = here("data", "encode", "data", "--embedder", "run", "--embedder", "ngrams", "--features")
    assert done.status == 0, done.err
    again = here("data", "encode", "data", "--embedder", "run")
    assert "contrastive: pictures encoded, as the column seen_" in again.out
    found = here("data", "search", "data", "a blue thing", "--json", "--limit", 6, "--sheet", "sheet.png")
    answer = json.loads(found.out)
    assert answer["ways"] == ["words", "meaning", "joint"]
    assert {hit["caption"].split()[0] for hit in answer["hits"]} == {"blue"}
    assert answer["version"] == Dataset.open(tmp_path / "data").version
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 128
    like = here("data", "search", "data", "--like", answer["hits"][0]["row"], "--limit", 3)
    assert "looks alike" in like.out
    seen = here("data", "search", "data", "--picture", pictures / "red-bar-1.png")
    assert "exactly this picture is in the data set" in seen.out
    made = here("data", "search", "data", "red", "--by", "words", "--into", "reds")
    assert "reds: 6 pictures" in made.out
    reds = Dataset.open(tmp_path / "reds")
    assert set(reds.column("caption")) == {"red disc", "red square", "red bar"}
    assert "words 'red'" in str(reds.about)
    rest = here("data", "search", "data", "red", "--limit", 24, "--into", "matching")
    assert "matching: 6 pictures" in rest.out
    nothing = here("data", "search", "data", "nothing like it", "--limit", 24, "--into", "none")
    assert nothing.refusal.startswith("nothing matches, so none was not made; --at-least")
    assert not (tmp_path / "none").exists()
    similar = here(
        "data", "search", "data", "--like", 0, "--at-least", -1, "--limit", 23, "--into", "similar"
    )
    assert "… and 3 more" in similar.out
    assert "similar: 23 pictures" in similar.out
    joint = here("data", "search", "reds", "disc", "--by", "joint", "--where", "height > 3")
    assert "red disc" in joint.out, joint.err
    assert (tmp_path / "reds" / "embedders").is_dir()
    kept = here("data", "filter", "data", "all", "--where", "id IS NOT NULL")
    assert kept.status == 0, kept.err
    once = here("data", "dedup", "data", "--into", "once")
    assert once.status == 0, once.err
    (tmp_path / "data").rename(tmp_path / "moved")
    for made_of_it in ("all", "once"):
        assert "red disc" in here("data", "search", made_of_it, "disc", "--by", "joint").out
    (tmp_path / "moved").rename(tmp_path / "data")
    assert here("data", "search", "data", "red", "--into", "reds").status == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["encode", "data"],
            "nothing to encode with: give --with AUTOENCODER, --features, --meaning or --embedder",
        ),
        (
            ["encode", "data", "--features", "--flip"],
            "--flip and --crops are for latents: give --with AUTOENCODER",
        ),
        (["encode", "data", "--embedder", "nothing"], "no embedder is called 'nothing'"),
        (["search", "data", "x", "--by", "wrods"], "'--by': expected 'auto', 'hybrid'"),
        (["search", "data", "--picture", "none.png"], "cannot read none.png: No such file"),
        (["search", "data", "--picture", "text.txt"], "the picture to look for cannot be used"),
        (
            ["search", "data", "x", "--by", "joint"],
            "there is no space of texts and pictures: `carrara train contrastive",
        ),
    ],
)
def test_mistakes_are_one_line(
    here: Here, pictures: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert here("data", "import", pictures, "data").status == 0
    (tmp_path / "text.txt").write_text("no picture")
    assert message in here("data", *arguments).refusal


def test_what_is_not_for_this_recipe(here: Here, pictures: Path, tmp_path: Path) -> None:
    plan = here("plan", "contrastive", "--set", "texts=ngrams", "--seconds", 0, "--json")
    assert plan.status == 0, plan.err
    told = json.loads(plan.out)
    assert told["parameters"]["pictures"] > told["parameters"]["texts"] > 100_000
    assert told["seconds"] == 60
    assert told["fits"][0] == {"batch": 256, "accumulate": 1}
    larger = here(
        "plan", "contrastive", "--set", "texts=ngrams", "--set", "train.batch=65536", "--seconds", 0, "--json"
    )
    scores = 8 * 4 * (65536**2 - 256**2)
    assert json.loads(larger.out)["memory"]["peak"] > told["memory"]["peak"] + scores
    assert "omit it" in here("plan", "contrastive", "--latent", "4x8x8").refusal
    recipe = named("contrastive")
    assert isinstance(recipe, ContrastiveRecipe)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text(to_toml(recipe))
    assert "no model yet" in here("doctor", "run").refusal
    assert "samples nothing" in here("doctor", "run", "--steps", 9).refusal
    assert here("data", "import", pictures, "data").status == 0
    refused = here("train", "contrastive", "data", "--out", "other", "--autoencoder", tmp_path)
    assert "omit --autoencoder and --start" in refused.refusal
