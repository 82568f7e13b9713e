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

Absent = Annotated[Any, only(None)]
One = Annotated[float, only(1)]
Falses = bool | tuple[bool, ...]
Numbers = Count | tuple[Count, ...]
Depths = Annotated[int, Field(ge=1, le=64)]


_OLD = AfterValidator(lambda name: name.removeprefix("UNetRes"))  # how some blocks were called before
Down = Annotated[str, _OLD, only("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")]
Up = Annotated[str, _OLD, only("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")]
CrossDown = Annotated[
    str, _OLD, only("DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
]
CrossUp = Annotated[
    str, _OLD, only("UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
]


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


class UNet2DConditionModel(Shared):
    """Rombach et al. 2022: Stable Diffusion 1 and 2, SDXL, and what is of their kind."""

    in_channels: Count = 4
    out_channels: Count = 4
    block_out_channels: Widths = (320, 640, 1280, 1280)
    down_block_types: tuple[CrossDown, ...] = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    up_block_types: tuple[CrossUp, ...] = (
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    )
    mid_block_type: Annotated[str | None, only("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)] = (
        "UNetMidBlock2DCrossAttn"
    )
    layers_per_block: Numbers = 2
    cross_attention_dim: Numbers = 1280
    transformer_layers_per_block: Depths | tuple[Depths | tuple[Depths, ...], ...] = 1
    reverse_transformer_layers_per_block: tuple[Depths | tuple[Depths, ...], ...] | None = None
    attention_head_dim: Numbers = 8
    num_attention_heads: Absent = None
    use_linear_projection: bool = False
    upcast_attention: bool = False  # concerns float16, where scores may overflow
    only_cross_attention: Falses = False
    mid_block_only_cross_attention: bool | None = None  # read by another middle only
    dual_cross_attention: Annotated[bool, only(False)] = False
    attention_type: Annotated[str, only("default")] = "default"
    cross_attention_norm: Absent = None
    class_embed_type: Annotated[
        str | None, only(None, "timestep", "identity", "projection", "simple_projection")
    ] = None
    class_embeddings_concat: Annotated[bool, only(False)] = False
    projection_class_embeddings_input_dim: Count | None = None
    addition_embed_type: Annotated[str | None, only(None, "text_time")] = None
    addition_time_embed_dim: Count | None = None
    addition_embed_type_num_heads: Count = 64  # read by another addition_embed_type only
    encoder_hid_dim: Absent = None
    encoder_hid_dim_type: Absent = None
    resnet_skip_time_act: Annotated[bool, only(False)] = False
    resnet_out_scale_factor: One = 1.0
    time_embedding_act_fn: Absent = None
    timestep_post_act: Absent = None
    time_cond_proj_dim: Absent = None
    conv_in_kernel: Annotated[int, only(3)] = 3
    conv_out_kernel: Annotated[int, only(3)] = 3

    def adopt(self) -> Said:
        """Raises UserError where it says what our network has no form for."""
        downs, ups = ([_side(name) for name in t] for t in (self.down_block_types, self.up_block_types))
        shape = self.shape(downs, ups)
        levels = len(downs)
        transforms = [level.attends == "tokens" for level in downs]
        middle = self.mid_block_type == "UNetMidBlock2DCrossAttn"
        self._same_on_both_sides(downs)
        if any(
            flag and t for flag, t in zip(_each(self.only_cross_attention, levels), transforms, strict=False)
        ):
            raise UserError(
                f"only_cross_attention {self.only_cross_attention} is not supported; Carrara has False (attention "
                "among positions, too)"
            )
        depths = self._depths("transformer_layers_per_block", self.transformer_layers_per_block, levels)
        entries = self._per_level("attention_head_dim", self.attention_head_dim, levels)
        # A number of heads where a level transforms, but the width of a head where it only attends.
        heads = [
            width // entry if level.attends == "self" else entry
            for level, entry, width in zip(downs, entries, self.block_out_channels, strict=True)
        ]
        depth = [d if t else 0 for d, t in zip(depths, transforms, strict=True)]
        shape |= {
            "blocks": alike(self._per_level("layers_per_block", self.layers_per_block, levels)),
            "depth": _with_middle(depth, depths[-1] if middle else None, [bool(k.attends) for k in downs]),
            "heads": _with_middle(heads, entries[-1] if middle else None, [bool(k.attends) for k in downs]),
            "projections": "linear" if self.use_linear_projection else "convolution",
            "middle_blocks": {"UNetMidBlock2DCrossAttn": 2, "UNetMidBlock2D": 1, None: 0}[
                self.mid_block_type
            ],
            "middle_attention": middle,
        }
        widths = self._per_level("cross_attention_dim", self.cross_attention_dim, levels)
        read = {w for w, t in zip(widths, transforms, strict=True) if t} | ({widths[-1]} if middle else set())
        if len(read) > 1:
            raise UserError(
                f"cross_attention_dim {self.cross_attention_dim} is not supported; Carrara has one width of tokens"
            )
        return self._with_vector(shape, {"tokens": read.pop()} if read else {})

    def _with_vector(self, shape: dict[str, Any], widths: dict[str, int]) -> Said:
        """And what is added to the time embedding."""
        kind, added = self.class_embed_type, self.addition_embed_type
        classes = self.num_class_embeds if kind is None else None
        if added and (kind or classes):
            first = "num_class_embeds" if classes else "class_embed_type"
            raise UserError(
                f"{first} {classes or kind!r} beside addition_embed_type {added!r} is not supported; Carrara has one "
                "vector"
            )
        width = self.projection_class_embeddings_input_dim
        if (added or kind in ("projection", "simple_projection")) and width is None:
            raise UserError(
                f"{'addition_embed_type' if added else 'class_embed_type'} {added or kind!r} needs "
                "projection_class_embeddings_input_dim"
            )
        if added and self.addition_time_embed_dim is None:
            raise UserError(f"addition_embed_type {added!r} needs addition_time_embed_dim")
        if added and not self.flip_sin_to_cos:
            raise UserError(
                f"flip_sin_to_cos False beside addition_embed_type {added!r} is not supported; Carrara has True there"
            )
        size = self.sample_size
        if added:
            extras = Extras("text_and_sizes", size_width=self.addition_time_embed_dim, sample_size=size)
            return self.said(shape | {"vector_layers": "mlp"}, widths | {"vector": width or 0}, extras)
        if classes is not None:
            extras = Extras("classes", classes=classes, sample_size=size)
            return self.said(shape | {"vector_layers": "none"}, widths | {"vector": self.time_width}, extras)
        if kind is None:
            return self.said(shape, widths, Extras(sample_size=size))
        layers, reads = {
            "timestep": ("mlp", self.block_out_channels[0]),
            "projection": ("mlp", width or 0),
            "simple_projection": ("linear", width or 0),
            "identity": ("none", self.time_width),
        }[kind]
        extras = Extras("class_number" if kind == "timestep" else "given", sample_size=size)
        return self.said(shape | {"vector_layers": layers}, widths | {"vector": reads}, extras)

    def _same_on_both_sides(self, downs: Sequence[Level]) -> None:
        levels = len(downs)
        if (back := self.reverse_transformer_layers_per_block) is not None:
            there = self._depths("transformer_layers_per_block", self.transformer_layers_per_block, levels)
            if self._depths("reverse_transformer_layers_per_block", back, levels) != there[::-1]:
                raise UserError(
                    f"reverse_transformer_layers_per_block {list(back)} is not supported; Carrara has the same depths "
                    "going up as going down"
                )
        # Going up, a level that attends by itself takes the entry of the level that stands at its place going down.
        entries = self._per_level("attention_head_dim", self.attention_head_dim, levels)
        for k, level in enumerate(downs):
            if level.attends == "self" and self.block_out_channels[k] % entries[k]:
                raise UserError(
                    f"attention_head_dim {entries[k]} at a width of {self.block_out_channels[k]} (block_out_channels) "
                    "is not supported; Carrara has heads that make up the width"
                )
            if level.attends == "self" and entries[k] != entries[levels - 1 - k]:
                raise UserError(
                    f"attention_head_dim {list(entries)} is not supported with AttnUpBlock2D, where diffusers reads it "
                    "backwards; Carrara has the same heads on both sides"
                )

    def _depths(self, name: str, given: Any, levels: int) -> list[int]:
        found = []
        for entry in _each(given, levels):
            if isinstance(entry, tuple) and len(set(entry)) != 1:
                raise UserError(f"{name} {_plain(given)} is not supported; Carrara has one depth a level")
            found.append(entry[0] if isinstance(entry, tuple) else entry)
        return self._per_level(name, tuple(found), levels)

    @staticmethod
    def _per_level(name: str, given: Numbers, levels: int) -> list[int]:
        found = _each(given, levels)
        if len(found) != levels:
            raise UserError(f"{name} has {len(found)} entries and block_out_channels {levels}")
        return found


def alike(values: Sequence[Any]) -> Any:
    """One value for all where all are the same, else a list."""
    return values[0] if len(set(values)) == 1 else list(values)


def _with_middle(levels: Sequence[int], middle: int | None, attends: Sequence[bool]) -> Any:
    """One number a level; the middle has the last level's, or where that attends otherwise one more."""
    heeded = [value for value, does in zip(levels, attends, strict=True) if does]
    if middle is None:
        return alike(heeded) if len(set(heeded)) == 1 else list(levels)
    if len({*heeded, middle}) == 1:
        return middle
    if not attends[-1] or levels[-1] == middle:
        return [*levels[:-1], middle]
    return [*levels, middle]


def _side(name: str) -> Level:
    attends: Literal["", "self", "tokens"] = ""
    if name.startswith("CrossAttn"):
        attends = "tokens"
    elif name.startswith("Attn"):
        attends = "self"
    return Level(attends, name.startswith("Resnet"))


def _each(given: Any, levels: int) -> list[Any]:
    return list(given) if isinstance(given, tuple) else [given] * levels


def _plain(values: Any) -> Any:
    return [_plain(v) for v in values] if isinstance(values, tuple) else values


def _quotient(width: int, first: int) -> int | float:
    return width // first if width % first == 0 else width / first
