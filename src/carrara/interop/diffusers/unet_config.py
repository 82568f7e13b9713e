"""diffusers' ``config.json`` of a U-Net in our words: which levels attend, how, and what is added to the time.

The defaults are those that diffusers has for a key that is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field

from carrara.config import Config, parse
from carrara.denoisers import unet
from carrara.errors import UserError
from carrara.interop.diffusers.autoencoder_config import Blocks, Count, Number, Silu, Size, Widths, only

TRANSFORMER_EPS = 1e-6  # in every transformer of diffusers, whatever norm_eps says

One = Annotated[float, only(1)]


OLD = AfterValidator(lambda name: name.removeprefix("UNetRes"))  # how some blocks were called before
Down = Annotated[str, OLD, only("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")]
Up = Annotated[str, OLD, only("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")]


class Level(NamedTuple):
    """What a type of block says of its level."""

    attends: Literal["", "self", "tokens"]
    inside: bool  # changes the size inside a residual block


class Said(NamedTuple):
    """What a file says of a network: our configuration, the latent's channels, the widths of the roles it reads."""

    config: unet.Config
    channels: int
    widths: dict[str, int]
    extras: Extras


@dataclass(frozen=True)
class Extras:
    """What diffusers has inside a U-Net and we have beside it.

    ``class_table`` [classes e]: the vectors that classes add to the time embedding; ``None`` where there are none.
    ``vector`` says what the vector is made of where a network reads one: "classes" (a row of that table),
    "class_number" (the class's number as ``time_features`` of a step of that number), "text_and_sizes" (a pooled
    text and ``size_width`` waves of each number of a size, as SDXL has), "given" (whatever it is given).
    """

    vector: Literal["", "classes", "class_number", "text_and_sizes", "given"] = ""
    size_width: int | None = None
    classes: int | None = None
    class_table: Any = field(default=None, compare=False)
    sample_size: Any = None


class Shared(Config):
    """What both U-Nets share."""

    in_channels: Count
    out_channels: Count
    block_out_channels: Widths
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    sample_size: Size = None
    center_input_sample: bool = False
    time_embedding_type: Annotated[str, only("positional")] = "positional"
    time_embedding_dim: Count | None = None
    freq_shift: Number = 0
    flip_sin_to_cos: bool = True
    mid_block_scale_factor: One = 1.0
    downsample_padding: Annotated[int, only(0, 1)] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    act_fn: Silu = "silu"
    norm_num_groups: Count = 32
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    resnet_time_scale_shift: Annotated[str, only("default", "scale_shift")] = "default"
    num_class_embeds: Count | None = None

    def shape(self, downs: Sequence[Level], ups: Sequence[Level]) -> dict[str, Any]:
        """Our fields that follow from what both say; UserError where sides disagree."""
        levels = len(self.block_out_channels)
        for name, found in (("down_block_types", downs), ("up_block_types", ups)):
            if len(found) != levels:
                raise UserError(f"{name} has {len(found)} levels and block_out_channels {levels}")
        if [level.attends for level in downs] != [level.attends for level in reversed(ups)]:
            raise UserError(
                f"up_block_types {list(self.up_block_types)} attend at other levels than down_block_types "
                f"{list(self.down_block_types)}; Carrara has the same on both sides"
            )
        first = self.block_out_channels[0]
        narrow = any(width % 32 for width in self.block_out_channels)
        return {
            "kind": "unet",
            "channels": first,
            "multipliers": [_quotient(width, first) for width in self.block_out_channels],
            "attention": [2**k for k, level in enumerate(downs) if level.attends],
            "resample_blocks": alike([level.inside for level in (*downs[:-1], *ups[:-1])] or [False]),
            "asymmetric": self.downsample_padding == 0,
            "embedding": None if self.time_embedding_dim == 4 * first else self.time_embedding_dim,
            "frequency_shift": self.freq_shift,
            "sines_first": not self.flip_sin_to_cos,
            "first_step": 0,
            "unit_input": self.center_input_sample,
            "dropout": self.dropout,
            "scale_shift": self.resnet_time_scale_shift == "scale_shift",
            "groups": None if self.norm_num_groups == 32 and not narrow else self.norm_num_groups,
            "eps": self.norm_eps,
            "transformer_eps": TRANSFORMER_EPS,
            "learnt_variance": self.out_channels > self.in_channels,
        }

    def said(self, shape: dict[str, Any], widths: dict[str, int], extras: Extras) -> Said:
        """With what the channels say: more going in are an image's, twice as many coming out a variance's."""
        doubled = self.out_channels > self.in_channels
        channels = self.out_channels // 2 if doubled else self.out_channels
        image = self.in_channels - channels
        if image < 0 or (doubled and self.out_channels % 2):
            raise UserError(
                f"out_channels is {self.out_channels} and in_channels {self.in_channels}; Carrara has as many out, "
                "fewer, or twice as many as the latent (a learned variance)"
            )
        config = parse(unet.Config, shape, where=type(self).__name__)
        return Said(config, channels, widths | ({"image": image} if image else {}), extras)

    @property
    def time_width(self) -> int:
        """Of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


class UNet2DModel(Shared):
    """Ho et al. 2020; Dhariwal & Nichol 2021; latent diffusion's models without a text."""

    in_channels: Count = 3
    out_channels: Count = 3
    block_out_channels: Widths = (224, 448, 672, 896)
    down_block_types: tuple[Down, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    up_block_types: tuple[Up, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    mid_block_type: Annotated[str | None, only("UNetMidBlock2D", None)] = "UNetMidBlock2D"
    layers_per_block: Annotated[Blocks, Field(ge=1)] = 2
    downsample_type: Annotated[str, only("conv", "resnet")] = "conv"
    upsample_type: Annotated[str, only("conv", "resnet")] = "conv"
    attention_head_dim: Count | None = 8
    attn_norm_num_groups: Count | None = None
    add_attention: bool = True
    class_embed_type: Annotated[str | None, only(None, "timestep", "identity")] = None
    num_train_timesteps: Count | None = None  # read by its learned time embedding only

    def adopt(self) -> Said:
        """Raises UserError where it says what our network has no form for."""
        downs = [self._side(name, self.downsample_type) for name in self.down_block_types]
        ups = [self._side(name, self.upsample_type) for name in self.up_block_types]
        middle = self.mid_block_type is not None
        shape = self.shape(downs, ups) | {
            "blocks": self.layers_per_block,
            "depth": 0,
            "middle_blocks": 2 if middle else 0,
            "middle_attention": middle and self.add_attention,
            "middle_groups": self._middle_groups() if middle and self.add_attention else None,
        }
        if self.attention_head_dim is None:
            shape |= {"heads": 1}
        elif shape["attention"] or shape["middle_attention"]:
            shape |= {"head_width": self.attention_head_dim}
        if self.class_embed_type == "timestep":
            shape |= {"vector_layers": "mlp"}
            extras = Extras("class_number", sample_size=self.sample_size)
            return self.said(shape, {"vector": self.block_out_channels[0]}, extras)
        if self.class_embed_type == "identity":
            extras = Extras("given", sample_size=self.sample_size)
        elif self.num_class_embeds is not None:
            extras = Extras("classes", classes=self.num_class_embeds, sample_size=self.sample_size)
        else:
            return self.said(shape, {}, Extras(sample_size=self.sample_size))
        return self.said(shape | {"vector_layers": "none"}, {"vector": self.time_width}, extras)

    @staticmethod
    def _side(name: str, change: str) -> Level:
        """Only levels that attend heed ``downsample_type`` and ``upsample_type``."""
        attends = name.startswith("Attn")
        return Level("self" if attends else "", name.startswith("Resnet") or (attends and change == "resnet"))

    def _middle_groups(self) -> int | None:
        """Without a number of its own, the middle's attention is normalised where time is not a scale and shift."""
        if self.attn_norm_num_groups is None:
            return None if self.resnet_time_scale_shift == "default" else 0
        return None if self.attn_norm_num_groups == self.norm_num_groups else self.attn_norm_num_groups


def alike(values: Sequence[Any]) -> Any:
    """One value for all where all are the same, else a list."""
    return values[0] if len(set(values)) == 1 else list(values)


def _quotient(width: int, first: int) -> int | float:
    return width // first if width % first == 0 else width / first
