"""A training step without a training: a recipe's networks on random data of the right shapes."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from carrara.conditions.condition import Latent
from carrara.context import Context
from carrara.embedders.two_towers import Towers
from carrara.errors import UserError
from carrara.generation.model import ModelConfig, bind, build_network
from carrara.geometry import Size
from carrara.training import discriminator
from carrara.training.discriminator import LOSSES, fooled
from carrara.training.losses import reconstruction_terms
from carrara.training.task import Task

if TYPE_CHECKING:
    from carrara.dataset.loader import Loaded
    from carrara.training.recipe import AutoencoderRecipe, ContrastiveRecipe, DiffusionRecipe

_CLASSES = 10  # of a made-up data set
_BOX = json.dumps([{"label": "thing", "box": [0.25, 0.25, 0.5, 0.5]}])
_WINDOW, _WIDTH = 77, 768  # tokens of CLIP ViT-L/14, for an encoder that is not at hand


class MadeUp:
    """`conditions.contract.Columns` where no data set is given: captions, labels and boxes that say nothing."""

    captions: Mapping[str, str] = {"und": "caption"}

    @property
    def names(self) -> Sequence[str]:
        """Columns that data sets have."""
        words = ("image", "caption", "label", "boxes", "width", "height")
        return [*words, "map", "depth", "edges", "mask", "normal", "pose"]

    def values(self, column: str) -> Iterator[Any]:
        """A few hundred."""
        for number in range(400):
            if column == "label":
                yield str(number % _CLASSES)
            elif column == "boxes":
                yield _BOX
            elif column in ("width", "height"):
                yield 512
            else:
                yield " ".join(_word(7 * number + k) for k in range(12))


def _word(number: int) -> str:
    """A word of three syllables that few other numbers have."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    return "".join(syllables[number * factor % len(syllables)] for factor in (1, 31, 53))


class _Absent(nn.Module):
    """Stands for a frozen text encoder whose folder is not here."""

    tokens, vector, image, column, form = _WIDTH, None, None, "caption", "text"

    def prepare(self, values: Sequence[Any], size: Size) -> Tensor:
        return torch.zeros(len(values), _WINDOW, _WIDTH)

    def forward(self, inputs: Tensor) -> Context:
        return Context(
            tokens=inputs, mask=torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        )


def learn(config: ModelConfig, data: Any, latent: Latent) -> tuple[nn.ModuleDict, list[str]]:
    """New encoders for the conditions, and what was assumed where one cannot be made here."""
    encoders, notes = nn.ModuleDict(), []
    for name, condition in config.conditions.items():
        try:
            encoders[name] = condition.learn(data, latent)
        except UserError as error:
            if condition.kind != "pretrained_text":
                raise
            encoders[name] = _Absent()
            assumed = f"{_WINDOW} tokens of width {_WIDTH}"
            reason = str(error).partition(" (known")[0].partition("; did you")[0]
            notes.append(f"{name}: assumed to give {assumed}, for its encoder cannot be opened: {reason}")
    return encoders, notes


@dataclass(frozen=True)
class Part:
    """What is built: its name for the table, and the module."""

    name: str
    module: nn.Module


class Rehearsal(Task):
    """A task whose losses are of the right shapes, and of no meaning."""

    parts: Sequence[Part]

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def losses(self, update: str, batch: Loaded) -> Mapping[str, Tensor]:
        """For as many random pictures as the batch has rows."""
        return self.terms(update, len(batch.rows))

    @abstractmethod
    def terms(self, update: str, count: int) -> Mapping[str, Tensor]:
        """For ``count`` random pictures."""

    def _image(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device)


class DiffusionRehearsal(Rehearsal):
    """Stage two."""

    divisible = True

    def __init__(
        self,
        recipe: DiffusionRecipe,
        conditions: nn.ModuleDict,
        context: Callable[[int], Context],
        latent: Latent,
        size: int,
        device: torch.device,
    ) -> None:
        """``context`` is what `contexts` made of the conditions."""
        super().__init__(device)
        self.shape = (latent.channels, size // latent.factor, size // latent.factor)
        network = build_network(recipe.model, conditions, latent.channels)
        self.modules = {"denoiser": nn.ModuleDict({"network": network, "conditions": conditions})}
        self.parts = [Part("denoiser", network), *(Part(n, e) for n, e in conditions.items())]
        self.diffusion, self._context = bind(recipe.model, network), context

    def terms(self, update: str, count: int) -> Mapping[str, Tensor]:
        """The error of the output."""
        latent, noise = self._image(count, *self.shape), self._image(count, *self.shape)
        t = torch.rand(count, device=self.device)
        return {"denoising": self.diffusion.loss(latent, noise, t, self._context(count)).mean()}


def contexts(conditions: nn.ModuleDict, size: Size, device: torch.device) -> Callable[[int], Context]:
    """count -> the context of so many pictures, made in each step, or once where it is derived before training."""
    prepared: dict[str, Any] = {}
    ready: dict[str, Context] = {}
    for name, encoder in conditions.items():
        inputs = encoder.prepare([_value(encoder)], size)  # type: ignore[operator]
        if not encoder.derivations([encoder.column]):  # type: ignore[operator]
            prepared[name] = inputs
        else:  # what is derived is kept beside the pictures
            with torch.no_grad():
                ready[name] = encoder(inputs)

    def several(one: Tensor, count: int) -> Tensor:
        return one.to(device).repeat(count, *(1,) * (one.ndim - 1))

    def context(count: int) -> Context:
        joined = Context()
        for name, encoder in conditions.items():
            if name in ready:
                roles = {role: several(value, count) for role, value in ready[name].roles().items()}
                joined = joined.join(Context(**roles))
                continue
            inputs = prepared[name]
            given = (
                several(inputs, count)
                if isinstance(inputs, Tensor)
                else {key: several(value, count) for key, value in inputs.items()}
            )
            joined = joined.join(encoder(given))
        return joined

    return context


def _value(encoder: Any) -> Any:
    """A caption as long as any; of other forms the null, which has the same shapes."""
    return " ".join(_word(k) for k in range(400)) if encoder.form == "text" else None


class ContrastiveRehearsal(Rehearsal):
    """A space of texts and pictures, over vectors of these widths."""

    def __init__(self, recipe: ContrastiveRecipe, pictures: int, texts: int, device: torch.device) -> None:
        super().__init__(device)
        self.recipe, self.widths = recipe, (pictures, texts)
        self.towers = Towers(recipe.towers, pictures, texts)
        self.modules = {"towers": self.towers}
        self.parts = [Part("pictures", self.towers.pictures), Part("texts", self.towers.texts)]

    def terms(self, update: str, count: int) -> Mapping[str, Tensor]:
        """The loss of pairs that have nothing to do with each other."""
        from carrara.training.contrastive_task import pair_loss

        given = [torch.randn(count, width, device=self.device) for width in self.widths]
        pictures, words = self.towers(*given)
        same = torch.eye(count, dtype=torch.bool, device=self.device)
        return {"contrastive": pair_loss(self.towers, pictures, words, same, self.recipe.loss)}


class AutoencoderRehearsal(Rehearsal):
    """Stage one, with its discriminator where it has one."""

    @property
    def divisible(self) -> bool:
        """As `AutoencoderTask`."""
        return not self.recipe.discriminator and not any(True for _ in self.network.buffers())

    def __init__(self, recipe: AutoencoderRecipe, device: torch.device) -> None:
        super().__init__(device)
        self.network: Any = recipe.network.build()
        self.shape = (int(recipe.network.image_channels), recipe.size, recipe.size)
        self.recipe, self.modules = recipe, {"autoencoder": self.network}
        self.parts = [Part("autoencoder", self.network)]
        self._pair: tuple[Tensor, Tensor] | None = None
        if recipe.discriminator:
            opponent = discriminator.build(recipe.discriminator, recipe.network.image_channels)
            self.modules = {**self.modules, "discriminator": opponent}
            self.parts = [*self.parts, Part("discriminator", opponent)]
        self._terms = reconstruction_terms(recipe.losses, device)

    def terms(self, update: str, count: int) -> Mapping[str, Tensor]:
        """The recipe's terms; the discriminator as it is once it plays."""
        config = self.recipe.discriminator
        if update == "discriminator" and config and self._pair:
            opponent = self.modules["discriminator"]
            return {"discriminator": LOSSES[config.loss](opponent(self._pair[0]), opponent(self._pair[1]))}
        image, factor = self._image(count, *self.shape), int(self.network.factor)
        noise = self._image(
            count, int(self.network.channels), self.shape[1] // factor, self.shape[2] // factor
        )
        out = self.network(image, noise)
        terms = {name: term(out.picture, image) for name, term in self._terms.items()} | dict(out.terms)
        self._pair = (image, out.picture.detach())
        if config:
            terms["adversarial"] = fooled(config.loss, self.modules["discriminator"](out.picture))
        return terms
