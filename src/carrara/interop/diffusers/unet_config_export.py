"""Our configuration of a U-Net as diffusers' ``config.json``, where it has a form for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from carrara.denoisers import unet
from carrara.errors import UserError
from carrara.interop.diffusers.unet_conditional_config import UNet2DConditionModel
from carrara.interop.diffusers.unet_config import TRANSFORMER_EPS, Extras, UNet2DModel, alike
from carrara.layers import GroupNorm


def express(
    config: unet.Config, network: unet.UNet, channels: int, widths: Mapping[str, int], extras: Extras
) -> UNet2DModel | UNet2DConditionModel:
    """Raises UserError where diffusers has no form for it; ``widths`` are those of the roles that are read."""
    if config.patch > 1:
        _refuse(f"patch is {config.patch}, and its U-Nets have none")
    levels = range(len(config.multipliers))
    transforms = [config.attends(k) and config.depth_at(k) > 0 for k in levels]
    middle = config.middle_attends and config.depth_at(-1) > 0
    both = {
        "in_channels": channels + widths.get("image", 0),
        "out_channels": 2 * channels if config.learnt_variance else channels,
        "block_out_channels": config.widths,
        "sample_size": extras.sample_size,
        "center_input_sample": config.unit_input,
        "time_embedding_dim": config.embedding,
        "freq_shift": config.frequency_shift,
        "flip_sin_to_cos": not config.sines_first,
        "downsample_padding": 0 if config.asymmetric else 1,
        "dropout": config.dropout,
        "norm_num_groups": _groups(config, network),
        "norm_eps": config.eps,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
    }
    # One of them has every kind of vector and a middle of one block, the other attention without a transformer.
    vector = "vector" in widths and extras.vector not in ("classes", "class_number")
    conditional = any(transforms) or middle or config.middle_blocks == 1
    if conditional or (vector and config.vector_layers != "none"):
        return _conditional(config, both, transforms, widths, extras)
    return _plain(config, both, widths, extras)


def tolerances(config: unet.Config) -> list[str]:
    """What is not quite the same there."""
    if "tokens" not in config.roles or config.transformer_eps == TRANSFORMER_EPS:
        return []
    return [
        f"transformer_eps is {config.transformer_eps:g}, and diffusers has {TRANSFORMER_EPS:g} there: outputs may "
        "differ in their fifth digit"
    ]


def _plain(
    config: unet.Config, both: dict[str, Any], widths: Mapping[str, int], extras: Extras
) -> UNet2DModel:
    levels = range(len(config.multipliers))
    attends = [config.attends(k) for k in levels]
    places = [k for k in levels if attends[k]] + [-1] * config.middle_attends
    head_widths = {config.widths[k] // config.heads_at(k) for k in places}
    one_head = {config.heads_at(k) for k in places} == {1}
    if len(head_widths) > 1 and not one_head:
        _refuse(
            f"attention heads of widths {', '.join(map(str, sorted(head_widths)))}, and UNet2DModel has one width"
        )
    groups = _middle_groups(config, both["norm_num_groups"])
    down, changes_down = _types(config, "Down", attends)
    up, changes_up = _types(config, "Up", attends)
    said = both | {
        "down_block_types": down,
        "up_block_types": up,
        "mid_block_type": "UNetMidBlock2D" if config.middle_blocks else None,
        "add_attention": config.middle_attends,
        "attn_norm_num_groups": groups,
        "layers_per_block": _one("blocks", [config.blocks_at(k) for k in levels], "UNet2DModel"),
        "downsample_type": changes_down,
        "upsample_type": changes_up,
        "attention_head_dim": None if one_head else next(iter(head_widths), 8),
    }
    if "vector" in widths:
        if extras.vector == "class_number":
            said |= {"class_embed_type": "timestep"}
        elif extras.vector == "classes":
            said |= {"num_class_embeds": extras.classes}
        else:
            said |= {"class_embed_type": "identity"}
    return UNet2DModel(**said)


def _types(config: unet.Config, side: str, attends: list[bool]) -> tuple[tuple[str, ...], str]:
    """Names of the blocks of a side in its order, and how its levels that attend change the size."""
    types, attending = [], set()
    levels = len(attends)
    name = "Downsample" if side == "Down" else "Upsample"
    for index in range(levels):
        level = index if side == "Down" else levels - 1 - index
        last = index == levels - 1
        inside = not last and config.change_at(index if side == "Down" else levels - 1 + index)
        if attends[level]:
            types.append(f"Attn{side}Block2D")
            attending |= set() if last else {inside}
        else:
            types.append(f"Resnet{name}Block2D" if inside else f"{side}Block2D")
    if len(attending) > 1:
        _refuse("resample_blocks differs between levels that attend, and UNet2DModel has one way for them")
    return tuple(types), "resnet" if attending == {True} else "conv"


def _middle_groups(config: unet.Config, groups: int) -> int | None:
    """Its name for them: None means as elsewhere, but with scale and shift no norm at all."""
    if not config.middle_attends:
        return None
    if config.middle_groups == 0:
        if not config.scale_shift:
            _refuse("middle_groups is 0, and UNet2DModel leaves that norm out with scale_shift only")
        return None
    wanted = config.middle_groups or groups
    return wanted if config.scale_shift or wanted != groups else None


def _conditional(
    config: unet.Config,
    both: dict[str, Any],
    transforms: list[bool],
    widths: Mapping[str, int],
    extras: Extras,
) -> UNet2DConditionModel:
    levels = range(len(config.multipliers))
    attends = [config.attends(k) for k in levels]
    if "tokens" not in widths and (any(transforms) or "tokens" in config.roles):
        _refuse(
            "transformers without tokens to attend to, and its transformers have them (depth = 0 needs none)"
        )
    if config.middle_blocks == 2 and not (config.middle_attends and config.depth_at(-1)):
        _refuse(
            "a middle of two blocks without a transformer, and UNet2DConditionModel has two blocks around one "
            "(middle_blocks = 1 is its other form)"
        )
    said = both | {
        "down_block_types": _cross_types(config, "Down", attends, transforms),
        "up_block_types": _cross_types(config, "Up", attends, transforms),
        "mid_block_type": ("UNetMidBlock2DCrossAttn" if config.middle_attends else "UNetMidBlock2D")
        if config.middle_blocks
        else None,
        "layers_per_block": alike([config.blocks_at(k) for k in levels]),
        "cross_attention_dim": widths.get("tokens", 1280),
        "transformer_layers_per_block": alike(_depths(config, transforms)),
        "attention_head_dim": alike(_heads(config, attends, transforms)),
        "use_linear_projection": config.projections == "linear",
    }
    return UNet2DConditionModel(
        **said | (_vector(config, widths["vector"], extras) if "vector" in widths else {})
    )


def _heads(config: unet.Config, attends: list[bool], transforms: list[bool]) -> list[int]:
    """Its entry for each level: heads where it transforms, else the width of one."""
    own = [a and not t for a, t in zip(attends, transforms, strict=True)]
    heads = [config.widths[k] // config.heads_at(k) if o else config.heads_at(k) for k, o in enumerate(own)]
    if config.middle_attends and heads[-1] != config.heads_at(-1):
        if attends[-1]:
            _refuse(
                "heads of the middle differ from the last level's, and UNet2DConditionModel has one number"
            )
        heads[-1] = config.heads_at(-1)
    if any(o and here != there for o, here, there in zip(own, heads, reversed(heads), strict=True)):
        _refuse(
            "levels of depth 0 whose heads are not read alike from both ends, as UNet2DConditionModel does"
        )
    return heads


def _depths(config: unet.Config, transforms: list[bool]) -> list[int]:
    depths = [config.depth_at(k) if t else 1 for k, t in enumerate(transforms)]
    if config.middle_attends:
        if transforms[-1] and depths[-1] != config.depth_at(-1):
            _refuse(
                "depth of the middle differs from the last level's, and UNet2DConditionModel has one number"
            )
        depths[-1] = config.depth_at(-1)
    return depths


def _cross_types(
    config: unet.Config, side: str, attends: list[bool], transforms: list[bool]
) -> tuple[str, ...]:
    names, inside = _types(config, side, attends)
    down = side == "Down"
    levels = list(range(len(attends))) if down else list(reversed(range(len(attends))))
    changes = ((k, config.change_at(k if down else len(attends) - 1 + i)) for i, k in enumerate(levels[:-1]))
    if inside == "resnet" or any(attends[k] and change for k, change in changes):
        _refuse("resample_blocks at levels that attend, and UNet2DConditionModel has convolutions there")
    return tuple("Cross" * transforms[k] + name for k, name in zip(levels, names, strict=True))


def _vector(config: unet.Config, width: int, extras: Extras) -> dict[str, Any]:
    if extras.vector == "classes":
        return {"num_class_embeds": extras.classes}
    if extras.vector == "class_number":
        return {"class_embed_type": "timestep"}
    if extras.vector == "text_and_sizes":
        return {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": extras.size_width,
            "projection_class_embeddings_input_dim": width,
        }
    if config.vector_layers == "none":
        return {"class_embed_type": "identity"}
    kind = "projection" if config.vector_layers == "mlp" else "simple_projection"
    return {"class_embed_type": kind, "projection_class_embeddings_input_dim": width}


def _groups(config: unet.Config, network: unet.UNet) -> int:
    middle = {id(layer.norm) for layer in network.middle if hasattr(layer, "qkv")}
    found = {m.groups for m in network.modules() if isinstance(m, GroupNorm) and id(m) not in middle}
    if len(found) > 1:
        _refuse(
            f"norms of {' and '.join(map(str, sorted(found)))} groups, and its U-Nets have one number for all "
            "(groups = 8 would do)"
        )
    return found.pop()


def _one(name: str, values: list[int], whose: str) -> int:
    if len(set(values)) > 1:
        _refuse(f"{name} is {values}, and {whose} has one number for all levels")
    return values[0]


def _refuse(why: str) -> NoReturn:
    raise UserError(f"diffusers cannot express it: {why}")
