"""Optimizers: AdamW, also with its averages in 8 bits, and Muon (Jordan et al. 2024), which orthogonalises updates."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from carrara.errors import UserError
from carrara.threads import at_once
from carrara.training.lr_and_budget import SCHEDULES, WARMUP

if TYPE_CHECKING:
    from carrara.training.recipe import TrainConfig


def falls_from(config: TrainConfig) -> float:
    """Share of the budget from which on the rate falls; 1 where it never does."""
    return {"wsd": 1 - config.cooldown, "cosine": 0.0}.get(config.lr_schedule, 1.0)


def lr_share(config: TrainConfig, *, used: float, step: int) -> float:
    """Share of the highest rate for the step after ``step`` others, when ``used`` of the budget is gone.

    The warm-up counts steps, because that is what an optimizer's averages need, but takes at most a tenth of the
    budget; it multiplies the shape.
    """
    rise = min(1.0, max((step + 1) / max(1, config.warmup), used / WARMUP))
    return rise * SCHEDULES[config.lr_schedule](used, config.cooldown)


# Quintic Newton-Schulz coefficients of the Muon reference: singular values end between 0.7 and 1.2 in five steps.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def make_optimizer(
    module: nn.Module, config: TrainConfig, *, fast_bf16: bool, threads: int = 1
) -> torch.optim.Optimizer:
    """The optimizer that the configuration names; Muon multiplies in bfloat16 where the machine does that fast,

    and orthogonalises matrices of different shapes at the same time, on so many ``threads``.

    UserError where the library for 8 bits is not installed.
    """
    if config.optimizer == "muon":
        products = torch.bfloat16 if fast_bf16 else torch.float32
        return Muon(
            module,
            config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            products=products,
            threads=threads,
        )
    options: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw8bit":
        made: torch.optim.Optimizer = _bitsandbytes().optim.AdamW8bit(
            module.parameters(), config.lr, **options
        )
        return made
    return torch.optim.AdamW(module.parameters(), config.lr, fused=True, **options)


def _bitsandbytes() -> Any:
    """The library, without its remarks on what else could be installed.

    Its AdamW (Dettmers et al. 2022) keeps both averages in 8 bits, in blocks of 256 numbers with a scale each;
    tensors of fewer than 4096 numbers stay in float32. On a CPU it is slower than AdamW.
    """
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError:
        raise UserError(
            "train.optimizer is adamw8bit, which needs bitsandbytes: pip install 'carrara[eightbit]'"
        ) from None
    finally:
        log.setLevel(level)
    return bitsandbytes


def orthogonalise(matrices: Tensor, steps: int = 5, *, products: torch.dtype = torch.bfloat16) -> Tensor:
    """``[k m n]`` to the nearest semi-orthogonal matrices: all singular values about 1.

    ``products`` is the precision of the matrix products; without native bfloat16 that one is far slower.
    """
    x = matrices.to(products)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
    wide = x.shape[-1] >= 2 * x.shape[-2] and products == torch.float32
    x = _by_gram(x, steps) if wide else _newton_schulz(x, steps)
    return x.mT if tall else x


def _newton_schulz(x: Tensor, steps: int) -> Tensor:
    a, b, c = _QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_gram(x: Tensor, steps: int) -> Tensor:
    """The same polynomials of the small matrix x x^T alone, multiplied with x once: less than half the work where

    x is much wider than high. Squares the singular values, for which bfloat16 is too coarse.
    """
    a, b, c = _QUINTIC
    gram, one = x @ x.mT, torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    total: Tensor | None = None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * one
        total = factor if total is None else factor @ total
        if step < steps - 1:
            gram = factor @ (factor @ gram)
    return x if total is None else total @ x


class Muon(torch.optim.Optimizer):
    """Muon for the matrices that ``matrices`` names, AdamW (betas, eps 1e-8) for everything else.

    The update of an m x n matrix is scaled by 0.2 sqrt(max(m, n)), so that its root mean square is that of an
    AdamW update and both use the same learning rate (Liu et al. 2025, "Muon is scalable", equation 4).
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        products: torch.dtype = torch.bfloat16,
        threads: int = 1,
    ) -> None:
        self.products, self.threads = products, threads
        hidden, other = split_parameters(module)
        # "fused" tells Optimizer.load_state_dict to bring the step counters back to the parameters' device.
        groups = [
            {"params": hidden, "muon": True, "momentum": momentum, "betas": betas, "fused": True},
            {"params": other, "muon": False, "momentum": momentum, "betas": betas, "fused": True},
        ]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["muon"]:
                self._muon(parameters, group)
            else:
                self._adamw(parameters, group)

    def _muon(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for p in parameters:
            by_shape[(p.shape[0], p.numel() // p.shape[0])].append(p)
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        at_once([partial(self._turn, same, group) for same in by_shape.values()], self.threads)

    @torch.no_grad()
    def _turn(self, same: list[nn.Parameter], group: dict[str, Any]) -> None:
        """A step of matrices of one shape."""
        rows, columns = same[0].shape[0], same[0].numel() // same[0].shape[0]
        updates = []
        for p in same:
            gradient, momentum = cast(Tensor, p.grad), self.state[p]["momentum"]
            momentum.lerp_(gradient, 1 - group["momentum"])
            updates.append(gradient.lerp(momentum, group["momentum"]).reshape(rows, columns))
        size = 0.2 * math.sqrt(max(rows, columns)) * group["lr"]
        for p, update in zip(same, orthogonalise(torch.stack(updates), products=self.products), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.reshape(p.shape).to(p.dtype), alpha=-size)

    def _adamw(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(
                    step=torch.zeros((), device=p.device),
                    exp_avg=torch.zeros_like(p),
                    exp_avg_sq=torch.zeros_like(p),
                )
        states = [self.state[p] for p in parameters]
        torch._fused_adamw_(
            list[Tensor](parameters),
            [cast(Tensor, p.grad) for p in parameters],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"].add_(1) for s in states],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of hidden layers (linear and convolution weights), and all else: embeddings, norms, biases,

    and the first and last layers, whose rows are coordinates rather than directions.
    """
    hidden: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for owner_name, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            ends = any(part in {"conv_in", "conv_out", "time", "vector"} for part in owner_name.split("."))
            matrix = (
                isinstance(owner, nn.Linear | nn.Conv2d) and name == "weight" and min(parameter.shape[:2]) > 1
            )
            (hidden if matrix and not ends else other).append(parameter)
    return hidden, other
