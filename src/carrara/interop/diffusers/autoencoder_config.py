"""diffusers' ``config.json`` of an autoencoder and our configuration: what each can say of the other.

The defaults are those that diffusers has for a key that is absent, magic numbers included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import torch
from pydantic import AfterValidator, Field

from carrara.autoencoders import kl, tiny, vq
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.autoencoders.trunk import TrunkConfig
from carrara.config import Config, parse
from carrara.errors import UserError, nearest


class Adopted(NamedTuple):
    """What a ``config.json`` says, in our words; ``size`` None where it says none."""

    config: Any
    scale: LatentScale
    size: int | None


def only(*supported: Any) -> AfterValidator:
    """Of a field: one of these values; any other is named beside them."""

    def check(value: Any) -> Any:
        if value not in supported:
            raise ValueError(f"{value!r} is not supported; Carrara has {' or '.join(map(repr, supported))}")
        return value

    return AfterValidator(check)


Count = Annotated[int, Field(ge=1)]
Blocks = Annotated[int, Field(ge=0, le=64)]  # far more than any has: a damaged file cannot ask for a million
Widths = Annotated[tuple[Count, ...], Field(min_length=1, max_length=16)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Silu = Annotated[str, only("silu", "swish")]
Down = Annotated[str, only("DownEncoderBlock2D", "AttnDownEncoderBlock2D")]
Up = Annotated[str, only("UpDecoderBlock2D", "AttnUpDecoderBlock2D")]
Size = Count | Annotated[tuple[Count, ...], Field(min_length=1)] | None


class Trunk(Config):
    """What AutoencoderKL and VQModel share."""

    in_channels: Count = 3
    out_channels: Count = 3
    down_block_types: tuple[Down, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[Up, ...] = ("UpDecoderBlock2D",)
    block_out_channels: Widths = (64,)
    layers_per_block: Annotated[Blocks, Field(ge=1)] = 1
    act_fn: Silu = "silu"
    norm_num_groups: Annotated[int, only(32, 8)] = 32
    mid_block_add_attention: bool = True
    sample_size: Size = None
    scaling_factor: Factor = 0.18215
    force_upcast: bool = True


class AutoencoderKL(Trunk):
    """Rombach et al. 2022: Stable Diffusion's, and with 16 channels SD3's and Flux's."""

    latent_channels: Count = 4
    shift_factor: Number | None = None
    latents_mean: tuple[Number, ...] | None = None
    latents_std: tuple[Factor, ...] | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    def adopt(self) -> Adopted:
        """Raises UserError where it says what our network has no form for."""
        shape = _shape(self, self.latent_channels, self.use_quant_conv or self.use_post_quant_conv)
        config = parse(kl.Config, shape, where="AutoencoderKL")
        return Adopted(config, self._scale(), _side(self.sample_size))

    def _scale(self) -> LatentScale:
        """As diffusers' pipelines compute: (raw - mean) * scaling_factor / std, or (raw - shift) * scaling_factor."""
        if self.latents_mean is None or self.latents_std is None:  # they count together only
            return _uniform(self.latent_channels, self.shift_factor or 0.0, self.scaling_factor)
        for name, values in (("latents_mean", self.latents_mean), ("latents_std", self.latents_std)):
            if len(values) != self.latent_channels:
                raise UserError(
                    f"{name} has {len(values)} numbers for {self.latent_channels} latent_channels"
                )
        return LatentScale(
            torch.tensor(self.latents_mean), torch.tensor(self.latents_std) / self.scaling_factor
        )

    @staticmethod
    def express(stored: StoredAutoencoder) -> AutoencoderKL:
        """Raises UserError where diffusers has no form for it."""
        config: kl.Config = stored.config
        said = _said(config, stored.size) | {
            "latent_channels": config.latent_channels,
            "use_quant_conv": config.projections,
            "use_post_quant_conv": config.projections,
            "scaling_factor": 1.0,
        }
        if (one := _one_factor(stored.scale)) is not None:
            said |= {"scaling_factor": one.factor, "shift_factor": one.shift or None}
        elif stored.scale is not None:
            said |= {
                "latents_mean": tuple(stored.scale.mean.tolist()),
                "latents_std": tuple(stored.scale.std.tolist()),
            }
        return AutoencoderKL(**said)


class VQModel(Trunk):
    """Esser et al. 2021; Rombach et al. 2022."""

    latent_channels: Count = 3
    num_vq_embeddings: Count = 256
    vq_embed_dim: Count | None = None
    norm_type: Annotated[str, only("group")] = "group"
    lookup_from_codebook: bool = False  # concerns decoding from numbers of codes, which is not asked for here
    force_upcast: bool = False

    def adopt(self) -> Adopted:
        """Raises UserError where it says what our network has no form for."""
        if self.vq_embed_dim not in (None, self.latent_channels):
            raise UserError(
                f"vq_embed_dim {self.vq_embed_dim} is not supported; Carrara has as many as latent_channels "
                f"({self.latent_channels})"
            )
        # Learning by gradient is how these were trained.
        shape = _shape(self, self.latent_channels, True) | {
            "codes": self.num_vq_embeddings,
            "learning": "gradient",
        }
        config = parse(vq.Config, shape, where="VQModel")
        scale = _uniform(self.latent_channels, 0.0, self.scaling_factor)
        return Adopted(config, scale, _side(self.sample_size))

    @staticmethod
    def express(stored: StoredAutoencoder) -> VQModel:
        """Raises UserError where diffusers has no form for it."""
        config: vq.Config = stored.config
        if config.cosine:
            raise UserError(
                "diffusers cannot express it: cosine is true, and its VQModel compares by distance"
            )
        one = _one_factor(stored.scale)
        return VQModel(
            **_said(config, stored.size),
            latent_channels=config.latent_channels,
            vq_embed_dim=config.latent_channels,
            num_vq_embeddings=config.codes,
            scaling_factor=one.factor if one and not one.shift else 1.0,
        )


class AutoencoderTiny(Config):
    """TAESD and its relatives."""

    in_channels: Count = 3
    out_channels: Count = 3
    encoder_block_out_channels: Widths = (64, 64, 64, 64)
    decoder_block_out_channels: Widths = (64, 64, 64, 64)
    block_out_channels: tuple[Count, ...] | None = None  # the decoder's again, in every file
    act_fn: Annotated[str, only("relu")] = "relu"
    upsample_fn: Annotated[str, only("nearest")] = "nearest"
    latent_channels: Count = 4
    upsampling_scaling_factor: Annotated[int, only(2)] = 2
    num_encoder_blocks: tuple[Blocks, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[Blocks, ...] = (3, 3, 3, 1)
    latent_magnitude: Number = 3.0  # this and the next concern keeping latents in bytes, not the network
    latent_shift: Number = 0.5
    force_upcast: bool = False
    scaling_factor: Factor = 1.0
    shift_factor: Number = 0.0

    def adopt(self) -> Adopted:
        """Raises UserError where it says what our network has no form for."""
        _same("out_channels", self.out_channels, "in_channels", self.in_channels)
        widths = {}
        for side, given, blocks in (
            ("encoder", self.encoder_block_out_channels, self.num_encoder_blocks),
            ("decoder", self.decoder_block_out_channels, self.num_decoder_blocks),
        ):
            if len(given) != len(blocks):
                raise UserError(
                    f"num_{side}_blocks has {len(blocks)} levels and {side}_block_out_channels {len(given)}"
                )
            if len(set(given)) > 1:
                raise UserError(
                    f"{side}_block_out_channels {list(given)} is not supported; Carrara has one width for all"
                )
            widths[side] = given[0]
        values = {
            "kind": "tiny",
            "image_channels": self.in_channels,
            "latent_channels": self.latent_channels,
            "encoder_width": widths["encoder"],
            "decoder_width": widths["decoder"],
            "encoder_blocks": self.num_encoder_blocks,
            "decoder_blocks": self.num_decoder_blocks,
        }
        config = parse(tiny.Config, values, where="AutoencoderTiny")
        return Adopted(config, _uniform(self.latent_channels, self.shift_factor, self.scaling_factor), None)

    @staticmethod
    def express(stored: StoredAutoencoder) -> AutoencoderTiny:
        """Everything has a form."""
        config: tiny.Config = stored.config
        one = _one_factor(stored.scale)
        return AutoencoderTiny(
            in_channels=config.image_channels,
            out_channels=config.image_channels,
            encoder_block_out_channels=(config.encoder_width,) * len(config.encoder_blocks),
            decoder_block_out_channels=(config.decoder_width,) * len(config.decoder_blocks),
            latent_channels=config.latent_channels,
            num_encoder_blocks=config.encoder_blocks,
            num_decoder_blocks=config.decoder_blocks,
            scaling_factor=one.factor if one else 1.0,
            shift_factor=one.shift if one else 0.0,
        )


CLASSES: Mapping[str, type[AutoencoderKL | VQModel | AutoencoderTiny]] = {
    "AutoencoderKL": AutoencoderKL,
    "VQModel": VQModel,
    "AutoencoderTiny": AutoencoderTiny,
}
BY_KIND: Mapping[str, type[AutoencoderKL | VQModel | AutoencoderTiny]] = {
    "kl": AutoencoderKL,
    "vq": VQModel,
    "tiny": AutoencoderTiny,
}


F = TypeVar("F", bound=Config)


def named_config(values: Mapping[str, Any], where: str, classes: Mapping[str, type[F]], what: str) -> F:
    """The table of a ``config.json`` as the class that it names; UserError where that is not one of these."""
    name = values.get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"{where} names no _class_name: it does not describe {what} of diffusers")
    if name not in classes:
        raise UserError(f"{where}: _class_name {name!r} is not supported{nearest(name, classes)}")
    model = classes[name]
    # Keys of another version of diffusers that ask for nothing are passed over; others might change the network.
    known = {
        key: value
        for key, value in values.items()
        if not key.startswith("_") and (key in model.model_fields or not (value is None or value is False))
    }
    return parse(model, known, where=where)


def file_config(values: Mapping[str, Any], where: str) -> AutoencoderKL | VQModel | AutoencoderTiny:
    """The table of an autoencoder's ``config.json``; UserError where its class is not one of ours."""
    return named_config(values, where, CLASSES, "an autoencoder")


class _One(NamedTuple):
    """A latent scale that is the same for every channel, as diffusers writes it."""

    factor: float
    shift: float


def _one_factor(scale: LatentScale | None) -> _One | None:
    if scale is None or len(set(scale.std.tolist())) > 1 or len(set(scale.mean.tolist())) > 1:
        return None
    # Seven digits are all that float32 holds: 0.18215 is itself again.
    return _One(float(f"{1 / float(scale.std[0]):.7g}"), float(f"{float(scale.mean[0]):.7g}"))


def expresses_scale(file: AutoencoderKL | VQModel | AutoencoderTiny, scale: LatentScale | None) -> bool:
    """Whether ``config.json`` says the whole latent scale; only AutoencoderKL has a number for each channel."""
    if scale is None or isinstance(file, AutoencoderKL):
        return True
    one = _one_factor(scale)
    return one is not None and (isinstance(file, AutoencoderTiny) or not one.shift)


def _uniform(channels: int, shift: float, factor: float) -> LatentScale:
    return LatentScale(torch.full((channels,), shift), torch.full((channels,), 1 / factor))


def _side(size: int | Sequence[int] | None) -> int | None:
    return min(size) if isinstance(size, Sequence) else size


def _same(name: str, value: Any, other: str, expected: Any) -> None:
    if value != expected:
        raise UserError(f"{name} is {value} and {other} {expected}; Carrara has the same on both sides")


def _shape(file: Trunk, latent_channels: int, projections: bool) -> dict[str, Any]:
    """Our trunk's fields from theirs."""
    _same("out_channels", file.out_channels, "in_channels", file.in_channels)
    widths = file.block_out_channels
    for name, types in (("down_block_types", file.down_block_types), ("up_block_types", file.up_block_types)):
        if len(types) != len(widths):
            raise UserError(f"{name} has {len(types)} levels and block_out_channels {len(widths)}")
    down = [name.startswith("Attn") for name in file.down_block_types]
    up = [name.startswith("Attn") for name in file.up_block_types][::-1]
    if down != up:
        raise UserError(
            f"up_block_types {list(file.up_block_types)} attend at other levels than down_block_types "
            f"{list(file.down_block_types)}; Carrara has the same on both sides"
        )
    for width in widths:
        if width % 8 or (32 if width % 32 == 0 else 8) != file.norm_num_groups:
            raise UserError(
                f"norm_num_groups {file.norm_num_groups} at a width of {width} (block_out_channels) is not "
                "supported; Carrara has 32 groups where the width is a multiple of 32, else 8"
            )
    channels = math.gcd(*widths)
    return {
        "kind": "vq" if isinstance(file, VQModel) else "kl",
        "image_channels": file.in_channels,
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "blocks": file.layers_per_block,
        "attention": [2**level for level, attends in enumerate(down) if attends],
        "middle_attention": file.mid_block_add_attention,
        "latent_channels": latent_channels,
        "projections": projections,
    }


def _said(config: TrunkConfig, size: int) -> dict[str, Any]:
    """Their fields from our trunk's; UserError where they have no form for it."""
    if config.patch > 1:
        raise UserError(
            f"diffusers cannot express it: patch is {config.patch}, and its autoencoders have none; "
            "to export, train with --set autoencoder.patch=1 --set autoencoder.multipliers=[1,2,2] "
            "--set autoencoder.channels=32"
        )
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    groups = {32 if width % 32 == 0 else 8 for width in widths}
    if len(groups) > 1:
        raise UserError(
            f"diffusers cannot express it: widths of {', '.join(map(str, widths))} have 32 and 8 norm groups, and "
            "its autoencoders have one number for all"
        )
    attends = [2**level in config.attention for level in range(len(widths))]
    channels = config.model_dump()["image_channels"]
    return {
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": tuple(widths),
        "down_block_types": tuple(f"{'Attn' if a else ''}DownEncoderBlock2D" for a in attends),
        "up_block_types": tuple(f"{'Attn' if a else ''}UpDecoderBlock2D" for a in reversed(attends)),
        "layers_per_block": config.blocks,
        "norm_num_groups": groups.pop(),
        "mid_block_add_attention": config.middle_attention,
        "sample_size": size,
    }
