"""A joint space of texts and pictures: two small towers over frozen vectors, as CLIP aligns whole encoders.

Radford et al. 2021; that frozen encoders are enough to begin from: Zhai et al. 2022 (LiT).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from carrara.config import Config

SIDES = ("pictures", "texts")


class TowersConfig(Config):
    """The shape of both towers."""

    hidden: int = Field(1024, ge=8, description="Width of each tower's hidden layer.")
    width: int = Field(256, ge=2, description="Numbers of a vector in the joint space.")
    dropout: float = Field(
        0.3, ge=0, lt=1, description="Share of a tower's inputs and hidden numbers left out."
    )


class Tower(nn.Module):
    """A straight way and a bent one, added: ``[b inputs]`` to unit ``[b width]``."""

    mean: Tensor
    spread: Tensor

    def __init__(self, config: TowersConfig, inputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", F.pad(Tensor(), (inputs, 0)))
        self.register_buffer("spread", F.pad(Tensor(), (1, 0), value=1.0))
        self.straight = nn.Linear(inputs, config.width, bias=False)
        self.first, self.second = nn.Linear(inputs, config.hidden), nn.Linear(config.hidden, config.width)
        self.drop = nn.Dropout(config.dropout)

    def measure(self, vectors: Tensor) -> None:
        """Keeps the mean of ``[n inputs]`` and what brings them to about one afterwards."""
        self.mean.copy_(vectors.mean(0))
        self.spread.copy_((vectors - self.mean).std().clamp(min=1e-6))

    def forward(self, vectors: Tensor) -> Tensor:
        x = self.drop((vectors - self.mean) / self.spread)
        y: Tensor = self.straight(x) + self.second(self.drop(F.gelu(self.first(x))))
        return F.normalize(y, dim=-1)


class Towers(nn.Module):
    """Both towers, the temperature as the logarithm of its inverse, and the sigmoid loss's bias (both learned)."""

    def __init__(self, config: TowersConfig, pictures: int, texts: int) -> None:
        super().__init__()
        self.pictures, self.texts = Tower(config, pictures), Tower(config, texts)
        self.scale = nn.Parameter(Tensor([2.66]))  # 1 / 0.07, theirs
        self.bias = nn.Parameter(Tensor([-10.0]))  # SigLIP's: most pairs of a batch do not belong together

    def forward(self, pictures: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        return self.pictures(pictures), self.texts(texts)
