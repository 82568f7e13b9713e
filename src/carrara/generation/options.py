"""The options of `carrara sample`: what a picture is to show, and how it is sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from carrara.config import Config

Label = Annotated[
    str | None, Field(description="The class to show, for a model that was trained on classes.")
]


class RequestOptions(Config):
    """What a picture is to show, for each form of condition; None or "" where nothing is given."""

    prompt: str = Field(
        "",
        description="What to show; may be omitted for a model without captions.",
        json_schema_extra={"argument": True},
    )
    negative: str = Field("", description="Negative prompt: what the picture should not show.")
    label: Label = None
    picture: tuple[str, ...] = Field(
        (),
        description="Picture for a model that takes one: a small picture, a map …; if it takes several, "
        "COLUMN=FILE each.",
    )
    start: Path | None = Field(
        None,
        description="Picture to start from, with any model: --strength says how much of it changes, --mask where.",
        json_schema_extra={"flag": "--from"},
    )
    mask: Path | None = Field(
        None,
        description="A picture that is white where the one of --from is to be filled in, the rest stays; for a model "
        "that was trained to fill holes, that of --picture.",
    )
    boxes: str | None = Field(
        None,
        description='A layout as JSON, or a file with it: \'[{"label": "cat", "box": [x, y, width, height]}]\'.',
    )
    original: str | None = Field(
        None, description="Pretend the original was this size, e.g. 1024x768 (models with a size condition)."
    )


class SamplingOptions(Config):
    """How a picture is sampled; None as suits the model."""

    strength: float | None = Field(
        None,
        gt=0,
        le=1,
        description="How much of the picture of --from changes: near 0 almost nothing, 1 all, sampled from noise; by "
        "default 0.5, with --mask 1.",
    )
    seed: str = Field("0", description="The same seed gives the same pictures; random draws one and says it.")
    steps: int | None = Field(
        None,
        description="Number of steps from noise to picture; by default 20, or as the model was released.",
    )
    sampler: str | None = Field(
        None,
        description="The sampler, perhaps with its options: heun, ddim:eta=0.5 … (carrara samplers lists them); by "
        "default dpmpp_2m, or as the model was released.",
    )
    grid: str | None = Field(
        None,
        description="How the steps are spaced: uniform, karras:rho=5 … (carrara samplers lists them); by default as "
        "suits the model.",
    )
    guidance: str | None = Field(
        None,
        description="How closely to follow the prompt: 1 is off, 2 is usual; other kinds by name: apg:4, "
        "interval:4,0.2,0.8 … (carrara samplers lists them).",
    )
    size: str | None = Field(
        None, description="Width x height in pixels, e.g. 96x64; by default the model's own size."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Precision of the network: fp32, bf16, or auto for the faster one on this machine.",
    )
    device: str = Field(
        "auto", description="Where to compute: cpu, cuda, cuda:1 …; by default a GPU where there is one."
    )
