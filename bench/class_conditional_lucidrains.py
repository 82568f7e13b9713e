"""denoising-diffusion-pytorch's part of class_conditional.py, for an environment that has it and not Carrara.

    python -m venv OTHER && OTHER/bin/pip install torch numpy einops tqdm accelerate ema-pytorch scipy pytorch-fid
    OTHER/bin/pip install --no-deps torchvision denoising-diffusion-pytorch

Where torchvision has no build that fits torch (its operators are missing), they are declared here so that it loads;
nothing of it is used.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

library = torch.library.Library("torchvision", "DEF")
for operator in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                 "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):  # fmt: skip
    try:
        library.define(operator)
    except RuntimeError:  # a torchvision that works
        break

from denoising_diffusion_pytorch.classifier_free_guidance import GaussianDiffusion, Unet  # noqa: E402
from ema_pytorch import EMA  # noqa: E402


def train(diffusion: GaussianDiffusion, average: EMA, given: str, seconds: float) -> int:
    """With the Trainer's defaults; pictures seen."""
    start, device = time.monotonic(), next(diffusion.parameters()).device
    data = np.load(given)
    pictures, labels = data["pictures"], torch.from_numpy(data["labels"])
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    order, seen, batch = torch.randperm(len(pictures)), 0, 16
    while time.monotonic() - start < seconds:
        chosen = order[torch.arange(seen, seen + batch) % len(order)]
        image = torch.from_numpy(pictures[chosen.numpy()]).float() / 255
        flipped = torch.rand(batch) < 0.5
        image[flipped] = image[flipped].flip(-1)
        diffusion(image.to(device), classes=labels[chosen].to(device)).backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        seen += batch
    return seen


def main() -> None:
    given, minutes, samples, steps, out = sys.argv[1:]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = Unet(dim=64, dim_mults=(1, 2, 4, 8), num_classes=10, cond_drop_prob=0.5)
    diffusion = GaussianDiffusion(model, image_size=32, timesteps=1000, sampling_timesteps=int(steps))
    diffusion.to(device)
    average = EMA(diffusion, beta=0.995, update_every=10)
    kept = Path(out).with_suffix(".pt")  # sampling takes longer than training, and may be interrupted
    if not kept.is_file():
        seen = train(diffusion, average, given, float(minutes) * 60)
        torch.save({"average": average.ema_model.state_dict(), "seen": seen}, kept)
    trained = torch.load(kept, map_location=device, weights_only=True)
    average.ema_model.load_state_dict(trained["average"])
    average.ema_model.eval()
    made = {}
    for name, scale in (("pictures", 1.001), ("pictures_guided", 6.0)):  # 1 fails there; 6 is its default
        found = []
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            for first in range(0, int(samples), 100):
                classes = torch.arange(first, min(first + 100, int(samples)), device=device) % 10
                found.append(average.ema_model.sample(classes=classes, cond_scale=scale).cpu())
        made[name] = (torch.cat(found).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    np.savez(out, seen=trained["seen"], weights=sum(p.numel() for p in model.parameters()), **made)


main()
