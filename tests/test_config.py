"""Configuration: strict, frozen, TOML both ways, and errors that name the nearest right spelling."""

import tomllib
from pathlib import Path

import pytest
from pydantic import Field

from carrara.config import Component, Config, OneOf, component, kinds, parse, read_toml, to_toml
from carrara.errors import UserError, nearest
from carrara.recipes.catalogue import named, recipes
from carrara.training.recipe import AutoencoderRecipe, ContrastiveRecipe, DiffusionRecipe


class Inner(Config):
    width: int = Field(3, ge=1)
    depth: int = 2


class Outer(Config):
    inner: Inner = Inner()
    maybe: Inner | None = None
    colour: OneOf("colour", {"red": 1, "green": 2}) = "red"  # type: ignore[valid-type]
    network: Component("denoisers")  # type: ignore[valid-type]


NETWORK = {"kind": "unet"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network": NETWORK, "iner": {}}, "unknown key 'iner'; did you mean 'inner'?"),
        (
            {"network": NETWORK, "inner": {"widht": 3}},
            "unknown key 'inner.widht'; did you mean 'inner.width'?",
        ),
        ({"network": NETWORK, "maybe": {"dept": 3}}, "unknown key 'maybe.dept'; did you mean 'maybe.depth'?"),
        ({"network": NETWORK, "inner": {"width": 0}}, "'inner.width': expected at least 1, got 0"),
        ({"network": NETWORK, "inner": {"width": "x"}}, "'inner.width': expected a whole number, got 'x'"),
        ({"network": NETWORK, "inner": {"width": 1.5}}, "'inner.width': expected a whole number, got 1.5"),
        ({"network": NETWORK, "inner": 3}, "'inner': expected a table, got 3"),
        (
            {"network": NETWORK, "colour": "gren"},
            "'colour': no colour is called 'gren'; did you mean 'green'?",
        ),
        ({}, "'network' is missing"),
        ({"network": 3}, "'network': expected a table with a 'kind'"),
        ({"network": {"kind": "unett"}}, "'network': unknown kind 'unett'; did you mean 'unet'?"),
        (
            {"network": {"kind": "unet", "chanels": 8}},
            "unknown key 'network.chanels'; did you mean 'network.channels'?",
        ),
        ({"network": {"kind": "unet", "channels": 0}}, "'network.channels': expected at least 2, got 0"),
        ({"netwrk": NETWORK}, "unknown key 'netwrk'; did you mean 'network'?"),
        (
            {"network": {"kind": "unet", "head_width": 7}},
            "'network': level 0 has 128 channels, no multiple of",
        ),
    ],
)
def test_a_fault_is_one_line_that_names_it(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as told:
        parse(Outer, values, where="mine.toml")
    text = str(told.value)
    assert text.startswith("mine.toml: ")
    assert message in text
    assert "\n" not in text


def test_what_is_right_is_parsed_and_written_again() -> None:
    given = {"network": {"kind": "unet", "channels": 64}, "maybe": {"width": 9}}
    config = parse(Outer, given, where="here")
    assert config.network.channels == 64
    assert config.maybe == Inner(width=9)
    text = to_toml(config)
    assert parse(Outer, tomllib.loads(text), where="again") == config
    assert "maybe" not in to_toml(config.model_copy(update={"maybe": None}))


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_survives_its_file(name: str, tmp_path: Path) -> None:
    recipe = named(name)
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(recipe), encoding="utf-8")
    assert named(str(file)) == recipe
    assert isinstance(recipe, AutoencoderRecipe | DiffusionRecipe | ContrastiveRecipe)
    small = ["train.batch=17", "train.accumulate=1", "train.budget=3steps", "train.precision=fp32"]
    changed = named(name, small)
    assert (changed.train.batch, changed.train.budget, changed.train.precision) == (17, "3steps", "fp32")
    assert changed.model_copy(update={"train": recipe.train}) == recipe


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("text_ldn", [], "no recipe is called 'text_ldn'; did you mean 'text_ldm'?"),
        ("text_ldm", ["train.bach=3"], "unknown key 'train.bach'; did you mean 'train.batch'?"),
        ("text_ldm", ["batch=16"], "unknown key 'batch'; did you mean 'train.batch'?"),
        ("kl_autoencoder", ["lr=1", "train.budget=3"], "unknown key 'lr'; did you mean 'train.lr'?"),
        ("text_ldm", ["bach=16"], "unknown key 'bach'; did you mean 'train.batch'?"),
        ("text_ldm", ["learning_rate=1"], "unknown key 'learning_rate'; did you mean 'train.lr'?"),
        ("text_ldm", ["train.batch_size=1"], "'train.batch_size'; did you mean 'train.batch'?"),
        ("text_ldm", ["depth=1"], "'model.denoiser.depth' or 'model.conditions.caption.depth'?"),
        ("text_ldm", ["size=128"], "works at the size of its autoencoder"),
        ("text_ldm", ["quux=1"], "unknown key 'quux' (known: crops, flip, "),
        ("text_ldm", ["train.lr=inf"], "'train.lr': expected a finite number, got inf"),
        ("text_ldm", ["train.lr=0"], "'train.lr': expected more than 0, got 0"),
        ("text_ldm", ["train.optimizer=adam"], "got 'adam'; did you mean 'adamw'?"),
        ("text_ldm", ["batch"], "cannot read the change 'batch'; expected for example train.batch=16"),
        ("text_ldm", ["times.mean=3"], "'times' holds a value, not a table"),
        ("text_ldm", ["times=uniforn"], "no time distribution is called 'uniforn'; did you mean 'uniform'?"),
        ("text_ldm", ["model.schedule=flwo"], "no schedule is called 'flwo'; did you mean 'flow'?"),
        ("text_ldm", ["model.schedule_options.beta=3"], "beta"),
        ("text_ldm", ["train.budget=soon"], "cannot read the budget 'soon'"),
        ("text_ldm", ["task=difusion"], "'task' is 'difusion'; did you mean 'diffusion'?"),
        ("kl_autoencoder", ["autoencoder.kind=kll"], "unknown kind 'kll'; did you mean 'kl'?"),
    ],
)
def test_a_recipe_at_fault(name: str, changes: list[str], message: str) -> None:
    with pytest.raises(UserError) as told:
        named(name, changes)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_files_that_are_no_toml(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("x = = 3")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    for name, word in (("a", "is not valid TOML"), ("b", "is not valid TOML"), ("c", "cannot read")):
        with pytest.raises(UserError, match=word):
            read_toml(tmp_path / f"{name}.toml")


def test_components_by_name() -> None:
    assert component("denoisers", "unet").__name__ == "carrara.denoisers.unet"
    assert "trunk" not in kinds("autoencoders")
    with pytest.raises(UserError, match=r"no denoiser is called 'nuet'; did you mean 'unet'\?"):
        component("denoisers", "nuet")


def test_the_nearest_name() -> None:
    assert nearest("ddmi", ["ddim", "heun"]) == "; did you mean 'ddim'? (known: ddim, heun)"
    assert nearest("zzz", ["ddim"]) == " (known: ddim)"
