#!/usr/bin/env bash
# DEISMultistepScheduler with use_karras_sigmas (and SASolverScheduler: they share the rule) ends its sigmas by repeating the
# last one, not with 0 as DPMSolverMultistepScheduler does with the same settings. So the last of the steps evaluates the
# network and changes nothing, and noise of that sigma stays in the picture.
#
# diffusers 0.42.1, torch 2.13.0. Seen: the last two sigmas 0.0292 0.0292, DPMSolver's 0.0292 0.0000; the last step moves DEIS by 0
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'torch==2.13.0' 'numpy==2.4.6' 'diffusers==0.42.1'
"$work/venv/bin/python" - <<'PY'
import torch
from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler, SASolverScheduler

stable_diffusion = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def ends(kind):
    scheduler = kind(use_karras_sigmas=True, **stable_diffusion)
    scheduler.set_timesteps(10)
    return scheduler, [round(float(sigma), 4) for sigma in scheduler.sigmas[-2:]]


scheduler, deis = ends(DEISMultistepScheduler)
z = torch.ones(1, 1, 2, 2)
for t in scheduler.timesteps:
    before, z = z, scheduler.step(torch.tanh(z), t, z).prev_sample
moved = float((z - before).abs().max())
_, sa = ends(SASolverScheduler)
_, dpm = ends(DPMSolverMultistepScheduler)
print(f"DEIS {deis}, SASolver {sa}, DPMSolver {dpm}; the last step moves DEIS by {moved:g}")
assert deis == sa == [0.0292, 0.0292], (deis, sa)
assert dpm == [0.0292, 0.0], dpm
assert moved == 0, moved
PY
