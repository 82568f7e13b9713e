"""What training does to the noise besides drawing it: offset noise and input perturbation."""

from __future__ import annotations

from torch import Tensor


def offset(noise: Tensor, extra: Tensor, *, strength: float = 0.1) -> Tensor:
    """Noise ``[b c ...]`` with a shift for each channel, ``extra [b c]`` of unit variance (Guttenberg 2023).

    Teaches brightness to a model whose schedule never reaches pure noise.
    """
    return noise + strength * extra.reshape(*extra.shape, *(1,) * (noise.ndim - 2))


def perturbed(noise: Tensor, extra: Tensor, *, strength: float = 0.1) -> Tensor:
    """The noise that z is made from while ``noise`` stays what is predicted (Ning et al. 2023).

    Stands in for the errors that sampling carries from step to step; ``extra`` is noise of the same shape.
    """
    return noise + strength * extra
