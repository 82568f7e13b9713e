"""How to train: the fields that every recipe has under ``train``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from carrara.config import Config, OneOf
from carrara.training import learning_rate
from carrara.training.budget import Budget

Share = Annotated[float, Field(ge=0, lt=1)]
Length = Annotated[float, Field(ge=0.005, lt=0.25)]


class TrainConfig(Config):
    """How to train; the same fields for every recipe."""

    budget: str = Field(
        "10m", description="How long: 90s, 10m, 2h, 4000steps or 20epochs (the last two repeat bit for bit)."
    )
    batch: int = Field(32, ge=1, le=65536, description="Pictures a step.")
    accumulate: int = Field(
        1, ge=1, description="Parts in which a batch is computed, to save memory; the gradient is the same."
    )
    optimizer: Literal["muon", "adamw", "adamw8bit"] = Field(
        "muon",
        description="Muon for matrices, AdamW throughout, or AdamW with averages in 8 bits (carrara[eightbit]).",
    )
    lr: float = Field(3e-3, gt=0, le=100, description="Learning rate at its highest.")
    lr_schedule: OneOf("learning-rate schedule", learning_rate.SCHEDULES) = Field(  # type: ignore[valid-type]
        "wsd", description="After the warm-up: wsd (a plateau, then a linear fall), cosine or constant."
    )
    betas: tuple[Share, Share] = Field((0.9, 0.99), description="AdamW's averages.")
    weight_decay: float = Field(0.01, ge=0, le=100, description="Decoupled weight decay.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    warmup: int = Field(100, ge=0, description="Steps until the learning rate is at its highest.")
    cooldown: float = Field(
        0.4, ge=0, le=1, description="In wsd: share of the budget in which it falls to zero."
    )
    ema: float = Field(
        0.05, gt=0, lt=0.25, description="Length of the weights' average, as a share of training."
    )
    ema_lengths: tuple[Length, ...] = Field(
        (), description="Further lengths to keep at the same time, for `carrara average`."
    )
    posthoc: tuple[Length, ...] = Field(
        (),
        description="Two lengths (0.05 and 0.1) to store while training, so that any other can be made after it.",
    )
    snapshots: int = Field(
        16, ge=2, le=1000, description="How often posthoc stores them; 2 bytes a weight and length each time."
    )
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="Arithmetic of the forward pass.")
    checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, a third more time."
    )
    compile: bool = Field(
        False, description="Compile the network's blocks (torch.compile) when training begins."
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Order, noise, times and initial weights follow from it."
    )
    save_every: float = Field(30.0, gt=0, description="Seconds between checkpoints.")
    keep: int = Field(2, ge=1, description="How many of the newest checkpoints stay.")

    @field_validator("budget")
    @classmethod
    def _readable(cls, value: str) -> str:
        Budget.parse(value)
        return value

    def counted(self, pictures: int) -> TrainConfig:
        """The same with a budget of epochs as steps, where there are so many pictures to train on."""
        budget = Budget.parse(self.budget)
        counted = budget.counted(pictures, self.batch)
        return self if budget == counted else self.model_copy(update={"budget": str(counted)})

    @field_validator("ema_lengths", "posthoc")
    @classmethod
    def _each_once(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len({written(length) for length in value}) < len(value):
            raise ValueError(f"a length comes twice in {list(value)}")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        if self.batch % self.accumulate:
            fitting = [n for n in range(1, self.batch + 1) if self.batch % n == 0]
            closest = sorted(fitting, key=lambda n: abs(n - self.accumulate))[:2]
            raise ValueError(
                f"a batch of {self.batch} does not divide into {self.accumulate} equal parts; "
                f"take accumulate = {' or '.join(map(str, sorted(closest)))}"
            )
        if len(self.posthoc) == 1:
            raise ValueError(
                f"posthoc needs two lengths to make others from, e.g. [0.05, 0.1]; got {list(self.posthoc)}"
            )
        return self


def written(length: float) -> str:
    """A length as it is written in files and looked up by: "0.05"."""
    return f"{length:.6g}"
