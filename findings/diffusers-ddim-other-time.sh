#!/usr/bin/env bash
# DDIMScheduler steps to t - 1000 // steps, whatever the next of its own timesteps is. Where the number of steps does not
# divide 1000, or with timestep_spacing="linspace", the sample that it returns belongs to another time than the one at
# which the network is asked next. With a network that knows the answer (one picture), the result is still not it.
#
# diffusers 0.42.1, torch 2.13.0. Seen: 7 linspace steps, after the first: meant for 857, asked next at 832
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'torch==2.13.0' 'numpy==2.4.6' 'diffusers==0.42.1'
"$work/venv/bin/python" - <<'PY'
import torch
from diffusers import DDIMScheduler

scheduler = DDIMScheduler(timestep_spacing="linspace", clip_sample=False)
scheduler.set_timesteps(7)
first, asked_next = (int(t) for t in scheduler.timesteps[:2])
noise = torch.ones(1, 1, 1, 1)  # the picture is 0, so a sample at time t is sigma(t) times the noise
sigma = (1 - scheduler.alphas_cumprod).sqrt()
after = scheduler.step(noise, first, sigma[first] * noise).prev_sample
meant = int((sigma - after.item()).abs().argmin())
print(f"7 linspace steps, after the first: meant for {meant}, asked next at {asked_next}")
assert (meant, asked_next) == (857, 832), (meant, asked_next)
PY
