"""Recipes: every field of a training, with its sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator

from carrara.autoencoders import identity
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.config import Component, Config, OneOf
from carrara.config import Config as Base
from carrara.dataset.columns import KINDS
from carrara.diffusion.schedules import SCHEDULES
from carrara.diffusion.times import TIMES
from carrara.diffusion.weightings import WEIGHTINGS
from carrara.embedders.embedders import PICTURES as PICTURES_BY
from carrara.embedders.embedders import TEXTS as TEXTS_BY
from carrara.embedders.two_towers import TowersConfig
from carrara.generation.model import ModelConfig
from carrara.training import lr_and_budget
from carrara.training.losses import LossWeights
from carrara.training.lr_and_budget import LOOKS_SHARE, Budget
from carrara.training.mirroring import setting


class DiscriminatorConfig(Base):
    """A patch discriminator that makes textures crisp."""

    layers: int = Field(
        3, ge=1, le=6, description="Halvings: a patch is 70 pixels wide with three, 34 with two."
    )
    channels: int = Field(64, ge=8, multiple_of=8, description="Features of its first layer.")
    loss: Literal["hinge", "non_saturating"] = Field("hinge", description="What it is trained by.")
    weight: float = Field(
        0.5, gt=0, description="Weight of fooling it, after it was made as strong as reconstruction."
    )
    gradient_penalty: float = Field(0.0, ge=0, description="Weight of R1, which keeps it smooth.")
    lr: float = Field(2e-4, gt=0, le=100, description="Its learning rate (AdamW, betas 0.5 and 0.9).")
    settled: float = Field(
        0.1, ge=0, description="It begins when a twentieth of the budget gained less than so many dB …"
    )
    latest: float = Field(0.5, ge=0, le=1, description="… or at this share of the budget.")
    ramp: float = Field(
        0.1, ge=0, le=1, description="Share of the budget in which its weight rises from zero."
    )
    tolerance: float = Field(
        1.0, ge=0, description="Loss of held-out PSNR, in dB, at which all that it did is undone."
    )


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
    lr_schedule: OneOf("learning-rate schedule", lr_and_budget.SCHEDULES) = Field(  # type: ignore[valid-type]
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


class AutoencoderRecipe(Config):
    """Everything that makes an autoencoder from a data set."""

    task: Literal["autoencoder"] = "autoencoder"
    size: int = Field(
        64, ge=8, description="Side of the pictures in pixels; they are scaled and cropped to it."
    )
    bits: Literal[8, 16] = Field(8, description="Depth of the pictures, bits a channel.")
    flip: bool = Field(True, description="Mirror half of the pictures.")
    autoencoder: Component("autoencoders") | None = Field(  # type: ignore[valid-type]
        None, description="The network; none means that of the autoencoder to start from."
    )
    losses: LossWeights = LossWeights()
    discriminator: DiscriminatorConfig | None = Field(
        None, description="Adversarial part; none trains without it."
    )
    train: TrainConfig = TrainConfig()

    @property
    def network(self) -> Any:
        """The configuration of its network, which it must have by now (see `with_network`)."""
        assert self.autoencoder is not None
        return self.autoencoder

    @model_validator(mode="after")
    def _snapshots_stay_true(self) -> AutoencoderRecipe:
        if self.discriminator and self.train.posthoc:
            raise ValueError(
                "train.posthoc needs weights that are never set back, but a discriminator may be undone; "
                "name the lengths you want in train.ema_lengths"
            )
        return self

    @model_validator(mode="after")
    def _discriminator_can_look(self) -> AutoencoderRecipe:
        if self.discriminator and self.size < (least := smallest_side(self.discriminator.layers)):
            raise ValueError(
                f"size is {self.size}; a discriminator of {self.discriminator.layers} layers needs at least {least}: "
                "take fewer layers"
            )
        return self


class ContrastiveRecipe(Config):
    """Everything that makes a joint space of texts and pictures from a data set."""

    task: Literal["contrastive"] = "contrastive"
    pictures: str = Field(PICTURES_BY, description="The embedder of pictures below: a name or a folder.")
    texts: str = Field(
        TEXTS_BY, description="The embedder of texts below: use, ngrams or an encoder's folder."
    )
    languages: tuple[str, ...] = Field(
        (), description="Languages of captions to learn from; empty means all."
    )
    towers: TowersConfig = TowersConfig()
    loss: Literal["softmax", "sigmoid"] = Field("softmax", description="CLIP's loss, or SigLIP's.")
    looks: int = Field(
        10, ge=1, le=1000, description="How often held-out pairs are looked at in a run, evenly."
    )
    pairs: int = Field(
        1000,
        ge=2,
        description="At most how many held-out pictures that is done with; as many others measure the best.",
    )
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _batches_stay_whole(self) -> ContrastiveRecipe:
        if self.train.accumulate > 1:
            raise ValueError(
                "train.accumulate is not 1, but a batch's pairs are told apart from each other, as one"
            )
        if self.train.batch < 2:
            raise ValueError("train.batch is 1; a pair needs others to be told apart from")
        return self


class Pixels(Config):
    """The pictures themselves as latents: nothing to train before, nothing to store."""

    size: int = Field(
        32, ge=8, description="Side of the pictures in pixels; they are scaled and cropped to it."
    )
    channels: int = Field(3, ge=1, le=4096, description="Channels of the pictures.")
    flip: bool = Field(True, description="Mirror half of the pictures.")

    def autoencoder(self) -> StoredAutoencoder:
        """The identity, with the scale that leaves [-1, 1] as it is."""
        config = identity.Config(image_channels=self.channels)
        scale = LatentScale(torch.zeros(self.channels), torch.ones(self.channels))
        return StoredAutoencoder.of(config.build(), config, self.size, {}).with_scale(scale)


class Resolution(Config):
    """A part of the training at one size of picture."""

    size: int = Field(32, ge=8, description="Side in pixels; with buckets, that of a square of their area.")
    share: float = Field(1.0, gt=0, description="How much of the budget, compared with the others' shares.")


class ValidationConfig(Config):
    """How often and on what a diffusion model is validated while it trains."""

    looks: int = Field(8, ge=0, le=1000, description="How many times in a run, evenly; 0 is never.")
    share: float = Field(
        LOOKS_SHARE,
        gt=0,
        le=1,
        description="Largest share of a budget of time for it; looks become fewer, then smaller.",
    )
    pictures: int = Field(64, ge=1, description="At most how many held-out pictures the loss is measured on.")
    samples: int = Field(8, ge=0, le=256, description="Pictures in the grid that is made each time.")
    prompts: tuple[str, ...] = Field(
        (), description="What to sample instead of held-out captions, of a model with a text condition."
    )
    steps: int = Field(10, ge=1, le=1000, description="Sampling steps of those pictures.")
    patience: int = Field(
        0, ge=0, description="Stop after so many looks without a better held-out loss; 0 is off."
    )

    @model_validator(mode="after")
    def _can_stop(self) -> ValidationConfig:
        if self.patience and self.patience >= self.looks:
            raise ValueError(
                f"patience is {self.patience}, but a run has {self.looks} looks; it could never stop it"
            )
        return self

    def passes(self, held_out: int) -> float:
        """Forward passes of a picture in a look, where there are so many held-out pictures."""
        return min(self.pictures, held_out) * BINS * 2 + self.samples * self.steps * 2


class DiffusionRecipe(Config):
    """Everything that makes a diffusion model from a data set and, unless it works on pixels, an autoencoder."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        "size": "diffusion in latents works at the size of its autoencoder: train that with --set size=…; "
        "in pixels the key is 'pixels.size', for stages of several sizes 'resolutions'"
    }
    task: Literal["diffusion"] = "diffusion"
    pixels: Pixels | None = Field(None, description="Diffusion in pixels; none means in latents.")
    flip: bool = Field(False, description="In latents: encode the mirrored pictures too, and mix them in.")
    crops: Literal[1, 3] = Field(
        1, description="In latents: 3 also encodes the start and the end of pictures that are not square."
    )
    ratio: float = Field(
        1.0,
        ge=1,
        le=4,
        description="Aspect-ratio buckets up to so many times longer than wide; 1 crops all to squares.",
    )
    resolutions: tuple[Resolution, ...] = Field(
        (), description="Sizes that training goes through, small first, each with its share of the budget."
    )
    model: ModelConfig = ModelConfig()
    times: OneOf("time distribution", TIMES) = Field(  # type: ignore[valid-type]
        "logit_normal", description="Distribution of the training times."
    )
    times_options: dict[str, float] = Field({}, description="Its options, for example mean and std.")
    times_shift: float = Field(
        1.0, gt=0, description="Moves the times towards the noise (Esser et al., eq. 23)."
    )
    weighting: OneOf("weighting", WEIGHTINGS) | None = Field(  # type: ignore[valid-type]
        None, description="How much an error at each time counts; none is the plain error of the output."
    )
    weighting_options: dict[str, float] = Field({}, description="Its options, for example gamma.")
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()

    @model_validator(mode="after")
    def _options_fit(self) -> DiffusionRecipe:
        if self.weighting:
            schedule = SCHEDULES[self.model.schedule](**self.model.schedule_options)
            WEIGHTINGS[self.weighting](torch.tensor([0.5]), schedule, **self.weighting_options)
        elif self.weighting_options:
            raise ValueError("'weighting_options' are there without a 'weighting'")
        placed = [name for name, c in self.model.conditions.items() if getattr(c, "placed", False)]
        if self.crops != 1 and placed:
            raise ValueError(f"the condition {placed[0]!r} goes by the central crop: leave 'crops' at 1")
        if self.ratio > 1 and self.crops != 1:
            raise ValueError("'crops' are squares out of long pictures; with 'ratio' these stay whole")
        if self.pixels and self.resolutions and self.resolutions[-1].size != self.pixels.size:
            raise ValueError(f"the last of 'resolutions' must have pixels.size, {self.pixels.size}")
        if self.pixels and (self.flip or self.crops != 1):
            raise ValueError("'flip' and 'crops' are for latents; pictures are mirrored by 'pixels.flip'")
        if reason := refusal(self):
            raise ValueError(reason)
        schedule = SCHEDULES[self.model.schedule](**self.model.schedule_options)
        TIMES[self.times](
            torch.tensor([0.5]), schedule, **self.times_options
        )  # says which option it does not know
        return self


def smallest_side(layers: int) -> int:
    """The smallest side in pixels that it can look at: two patches."""
    return int(2**layers * 3)


BINS = 8


def refusal(recipe: Any) -> str:
    """Why a recipe cannot mirror pictures: a condition that nobody can mirror; else ""."""
    for name, condition in recipe.model.conditions.items():
        kind = KINDS.get(getattr(condition, "column", ""))
        if kind is not None and kind.mirrored == "swaps sides" and (flip := setting(recipe)):
            return (
                f"the condition {name!r} shows a {condition.column}, of which a mirrored picture would swap left and "
                f"right: set {flip} to false"
            )
    return ""


def written(length: float) -> str:
    """A length as it is written in files and looked up by: "0.05"."""
    return f"{length:.6g}"


LOG_EVERY = 10  # steps
