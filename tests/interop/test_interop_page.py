"""The page about other people's weights names commands that work."""

import shlex
from itertools import pairwise
from pathlib import Path

from carrara.autoencoders import kl
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.recipes.catalogue import named
from carrara.training.autoencoder_task import with_network
from carrara.training.recipe import AutoencoderRecipe

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"


def test_fine_tuning_takes_the_network_that_was_adopted() -> None:
    page = PAGE.read_text(encoding="utf-8").splitlines()
    lines = [shlex.split(line, comments=True) for line in page if line.startswith("carrara train ")]
    lines = [words for words in lines if "--start" in words]
    assert lines
    config = kl.Config(channels=8, multipliers=(1, 2), blocks=1)
    adopted = StoredAutoencoder.of(config.build(), config, 256, {})
    for _, _, recipe, *rest in lines:
        changes = [value for flag, value in pairwise(rest) if flag == "--set"]
        chosen = named(recipe, changes)
        assert isinstance(chosen, AutoencoderRecipe)
        assert with_network(chosen, adopted).network == config
        assert chosen.size == 256
