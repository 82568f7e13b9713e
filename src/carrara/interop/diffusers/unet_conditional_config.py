"""diffusers' ``config.json`` of a U-Net that attends to a text in our words: Stable Diffusion and its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from carrara.errors import UserError
from carrara.interop.diffusers.autoencoder_config import Count, Widths, only
from carrara.interop.diffusers.unet_config import OLD, Extras, Level, One, Said, Shared, alike

Absent = Annotated[Any, only(None)]
Falses = bool | tuple[bool, ...]
Numbers = Count | tuple[Count, ...]
Depths = Annotated[int, Field(ge=1, le=64)]

CrossDown = Annotated[
    str, OLD, only("DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
]
CrossUp = Annotated[
    str, OLD, only("UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
]


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
