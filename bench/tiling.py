"""Pictures in tiles against the same in one: how near, whether seams show, in what memory and time.

python bench/tiling.py [--autoencoder FOLDER] [--picture FILE] [--sides 768,1536]

Each figure is of encoding and decoding together, in processes of their own; memory is the peak over what the
process held before. Without an autoencoder: the published f8 shape at a quarter of its width, untrained.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carrara.autoencoders import kl, tiling
from carrara.autoencoders.stored import load_autoencoder

NETWORK = {"channels": 32, "multipliers": (1, 2, 4, 4), "blocks": 2, "latent_channels": 4}


def gradient(side: int) -> Tensor:
    """Smooth everywhere: where seams show most."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    return torch.stack([x * 1.6 - 0.8, y * 1.6 - 0.8, torch.sin(3 * x + 2 * y) * 0.7])[None]


def opened(picture: Path | None, side: int) -> Tensor:
    """The picture as a square [1 3 side side], or the gradient."""
    if picture is None:
        return gradient(side)
    from carrara.images.decode import pixels
    from carrara.tensors import from_pixels

    return from_pixels(pixels(picture.read_bytes(), side))[None]


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(
    folder: Path | None, picture: Path | None, side: int, tiled: bool, kept: Path
) -> dict[str, float]:
    """Encodes and decodes; the picture that comes out goes to ``kept``."""
    torch.manual_seed(0)
    module: Any = load_autoencoder(folder).module if folder else kl.Config(**NETWORK).build().eval()
    image = opened(picture, side)
    before, start = peak(), time.perf_counter()
    with torch.inference_mode():
        if tiled:
            again = tiling.decode(module, tiling.encode(module, image).mode())
        else:
            again = module.decode(module.encode(image).mode())
    result = {"seconds": time.perf_counter() - start, "memory": peak() - before, "factor": module.factor}
    torch.save(again, kept)
    return result


def seam(image: Tensor, factor: int) -> float:
    """Mean absolute difference across the tiles' borders, relative to that between all neighbours."""
    tiles = tiling.grid(image.shape[2], image.shape[3], factor)
    ratios = []
    for picture, spans in ((image, tiles.columns), (image.mT, tiles.rows)):
        across = (picture[..., 1:] - picture[..., :-1]).abs().mean((0, 1, 2))
        ratios.append(across[[span.last * factor - 1 for span in spans[:-1]]].mean() / across.mean())
    return float(sum(ratios) / len(ratios))


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--autoencoder", type=Path)
    arguments.add_argument("--picture", type=Path)
    arguments.add_argument("--sides", default="768,1536")
    given = arguments.parse_args()
    print("side   PSNR dB   seam: whole  tiled   MiB: whole  tiled   time ratio")
    with tempfile.TemporaryDirectory() as place:
        for side in map(int, given.sides.split(",")):
            found, images = [], []
            for tiled in (False, True):
                kept = Path(place) / f"{tiled}.pt"
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, mp_context=context) as alone:
                    one = alone.submit(measure, given.autoencoder, given.picture, side, tiled, kept)
                    found.append(one.result())
                images.append(torch.load(kept))
            whole, tiles = found
            error = (images[0] - images[1]).double().square().mean()
            seams = [seam(image, int(whole["factor"])) for image in images]
            print(
                f"{side:4}   {10 * torch.log10(4 / error):7.1f}   {seams[0]:11.3f}  {seams[1]:5.3f}"
                f"   {whole['memory']:10.0f}  {tiles['memory']:5.0f}   {tiles['seconds'] / whole['seconds']:10.1f}"
            )


if __name__ == "__main__":
    main()
