"""Numbers that cannot be are refused by the model of the option, wherever they come from."""

import math
from typing import Any

import pytest

from carrara.autoencoders import kl
from carrara.conditions import text
from carrara.config import Config, parse
from carrara.denoisers import dit, unet
from carrara.errors import UserError
from carrara.generation.sample import Settings
from carrara.importing.options import Options
from carrara.training.recipe import AutoencoderRecipe, DiffusionRecipe, TrainConfig
from conftest import Here


@pytest.mark.parametrize(
    ("model", "values", "key"),
    [
        *((TrainConfig, {"lr": lr}, "lr") for lr in (1e300, math.inf, math.nan, -1.0, 0.0)),
        *((TrainConfig, {"budget": b}, "budget") for b in ("9" * 400 + "h", "inf h", "-3h", "1e400h", "99999999999h")),
        (TrainConfig, {"seed": -1}, "seed"), (TrainConfig, {"seed": 2**64}, "seed"),
        (TrainConfig, {"clip": math.inf}, "clip"), (TrainConfig, {"warmup": 10**30}, "warmup"),
        (TrainConfig, {"save_every": math.nan}, "save_every"), (TrainConfig, {"weight_decay": 1e9}, "weight_decay"),
        (TrainConfig, {"accumulate": 10**12}, "accumulate"), (TrainConfig, {"betas": (0.9, math.nan)}, "betas"),
        (Settings, {"seed": -3}, "seed"), (Settings, {"guidance": math.inf}, "guidance"),
        (Settings, {"width": 10**7}, "width"),
        (Options, {"seconds": math.inf}, "seconds"), (Options, {"count": 10**12}, "count"),
        (Options, {"held_out": math.nan}, "held_out"), (text.Config, {"vocabulary": 2**31}, "vocabulary"),
        (text.Config, {"vocabulary": 2**24, "width": 2**23}, "larger than this machine's memory"),
        (text.Config, {"depth": 2**24, "width": 4096}, "larger than this machine's memory"),
        (unet.Config, {"channels": 2**22}, "larger than this machine's memory"),
        (unet.Config, {"multipliers": (1, 1e9)}, "larger than this machine's memory"),
        (unet.Config, {"blocks": 2**24}, "larger than this machine's memory"),
        (dit.Config, {"width": 2**22}, "larger than this machine's memory"),
        (dit.Config, {"depth": 2**24, "width": 3072}, "larger than this machine's memory"),
        (kl.Config, {"channels": 2**22}, "larger than this machine's memory"),
        (kl.Config, {"multipliers": (1, 10**9)}, "multipliers"),
        (kl.Config, {"latent_channels": 10**6}, "latent_channels"),
        (kl.Config, {"kl": math.inf}, "kl"), (AutoencoderRecipe, {"size": 10**9}, "size"),
        (DiffusionRecipe, {"model": {"denoiser": {"kind": "dit", "width": 2**22}}}, "larger than this machine's"),
        (DiffusionRecipe, {"times_shift": math.inf}, "times_shift"),
    ],
)  # fmt: skip
def test_a_number_that_cannot_be(model: type[Config], values: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key) as refused:
        parse(model, values, where="here")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "command",
    [
        "data filter d n --where width>1 --seed -1", "data split d --seed -1", "data split d --held-out nan",
        "data split d --by near --within nan", "data dedup d --within nan", "data clean d --keep-hours inf",
        "data clean d --keep-hours nan", "data import p d --seconds inf", "data import p d --seconds nan",
        "average r --out a --length nan", "plan kl_autoencoder --seconds nan", "plan kl_autoencoder --seconds inf",
        "plan kl_autoencoder --budget 99999999999h", "show forward p.png --out x.png --seed -1",
        "train kl_autoencoder d --out r --set train.lr=1e300", "train kl_autoencoder d --out r --set train.lr=nan",
        "train kl_autoencoder d --out r --budget ", "plan kl_autoencoder --budget ",
    ],
)  # fmt: skip
def test_a_number_that_no_command_takes(here: Here, command: str) -> None:
    said = here(*command.split(" ")).refusal
    assert any(word in said for word in ("expected", "no number", "there is no source")), said
