"""VQ autoencoder: each position of the latent is one of a codebook's codes (Esser et al. 2021; Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from carrara.autoencoders.codebook import Codebook
from carrara.autoencoders.point import PointEncoding
from carrara.autoencoders.reconstruction import Reconstruction
from carrara.autoencoders.trunk import Decoder, Encoder, TrunkConfig, check_size


class Config(TrunkConfig):
    """An autoencoder whose latent is made of learned codes."""

    LEARNING: ClassVar = frozenset({"learning", "commitment"})
    kind: Literal["vq"] = "vq"
    image_channels: int = Field(3, ge=1, le=4096, description="Channels of the pictures.")
    codes: int = Field(8192, ge=2, le=2**20, description="Codes in the codebook.")
    learning: Literal["ema", "gradient"] = Field(
        "ema", description="How codes learn: as moving averages of what they stand for, or by gradient."
    )
    cosine: bool = Field(False, description="Vectors and codes lie on the unit sphere: nearest by angle.")
    commitment: float = Field(
        0.25, ge=0, description="Weight of the mean squared distance that draws vectors to their codes."
    )

    def build(self) -> Autoencoder:
        """The network, freshly initialised from torch's global generator."""
        return Autoencoder(self)


@dataclass(frozen=True)
class Encoding(PointEncoding):
    """The latent before it is quantized, which decoding does."""

    codebook: Codebook

    def penalty(self) -> Tensor:
        """Mean squared distance to the nearest codes: [b]."""
        near = self.codebook.lookup(self.codebook.nearest(self.mean))
        return (self.mean - near).square().flatten(1).mean(1)


class Autoencoder(nn.Module):
    """encode(image [b c H W] in [-1, 1]) -> Encoding; decode(latent [b c H/f W/f]) quantizes, then -> image."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channels, self.factor, self.codes = config.latent_channels, config.factor, config.codes
        self.commitment = config.commitment
        self.encoder = Encoder(config, config.image_channels, config.latent_channels)
        self.decoder = Decoder(config, config.image_channels)
        width = config.latent_channels
        self.to_latent = nn.Conv2d(width, width, 1) if config.projections else nn.Identity()
        self.from_latent = nn.Conv2d(width, width, 1) if config.projections else nn.Identity()
        self.codebook = Codebook(config.codes, width, learning=config.learning, cosine=config.cosine)

    def encode(self, image: Tensor) -> Encoding:
        """The raw latent, not yet quantized; ValueError where a side is no multiple of the factor."""
        check_size(image, self.factor)
        return Encoding(self.codebook.fit(self.to_latent(self.encoder(image)).float()), self.codebook)

    def decode(self, latent: Tensor) -> Tensor:
        """Raw latents, quantized, to an image, roughly in [-1, 1], not clipped."""
        return self._picture(self.codebook.lookup(self.codebook.nearest(self.codebook.fit(latent))))

    def indices(self, latent: Tensor) -> Tensor:
        """Raw latents to the numbers of their codes, int64 [b h w]."""
        return self.codebook.nearest(self.codebook.fit(latent))

    def forward(self, image: Tensor, noise: Tensor) -> Reconstruction:
        """One training pass; ``noise`` is not used. Terms: commitment, and codebook where gradients move it."""
        quantized = self.codebook(self.encode(image).mean)
        terms: dict[str, Tensor] = {"commitment": self.commitment * quantized.commitment.mean()}
        if self.codebook.learning == "gradient":
            terms["codebook"] = quantized.codebook.mean()
        return Reconstruction(self._picture(quantized.latent), quantized.latent, terms)

    def measures(self) -> Mapping[str, float]:
        """Of the last batches: the share of codes in use, and their perplexity."""
        return {"codes_used": self.codebook.used, "perplexity": self.codebook.perplexity}

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The last weights of the encoder and of the decoder: where gradients of terms are compared."""
        return self.encoder.conv_out.weight, self.decoder.conv_out.weight

    def _picture(self, latent: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.from_latent(latent)).float()
        return out
