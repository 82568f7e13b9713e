"""The page of `carrara inspect autoencoder`: verdict, figures, worst pictures, latents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from carrara.evaluation.autoencoder import Case, Figure, Inspection
from carrara.evaluation.verdict import Verdict
from carrara.metrics.latent_statistics import LAGS, Channel, CodebookUse
from carrara.pages import html
from carrara.pages.html import Chart, Line, legend

ERROR_GAIN = 4  # an error of 64 of 255 is shown white
_SIDE = 256  # pixels, at most, of a picture on the page
_NAMES = {
    "psnr": "PSNR",
    "psnr_median": "PSNR, median",
    "psnr_worst": "PSNR, worst",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "kernel_distance": "kernel distance",
    "gap": "training less held-out",
}


def inspection_page(found: Inspection, verdict: Verdict) -> str:
    """One HTML file with everything inside it."""
    model, data = found.model, found.data
    split = "held-out" if data["split"] == "held_out" else "training"
    lead = (
        f"{model['kind']} autoencoder {model['hash']}: {model['image_channels']} channels of {model['bits']} bits "
        f"at {model['size']} pixels to a latent of {model['latent_channels']} x {model['size'] // model['factor']} "
        f"x {model['size'] // model['factor']}; measured on {data['pictures']} of {data['of']} {split} pictures."
    )
    sections = [
        ("Verdict", _verdict(found, verdict)),
        ("Reconstruction", _figures(found)),
        (f"The {len(found.worst)} worst", _worst(found.worst)),
        ("The latent, channel by channel", _latent(found.channels)),
        ("Channels together", _across(found.across)),
    ]
    if found.codebook:
        sections.append(("The codebook", _codebook(found.codebook)))
    return html.page("Autoencoder, inspected", lead, sections)


def _verdict(found: Inspection, verdict: Verdict) -> str:
    said = str(verdict)
    parts = [f"<p><strong>{said[0].upper()}{said[1:]}.</strong></p>"]
    if found.data["split"] != "held_out":
        parts.append(
            "<p>No pictures are held out in this data set, so these are pictures that training saw: "
            "figures flatter. Import with --held-out to keep some back.</p>"
        )
    elif found.data["the model's own"] is not True:
        parts.append(
            "<p>The model's passport does not name this data set: it may have seen the held-out pictures.</p>"
        )
    if found.dead:
        parts.append(f"<p>Channels that carry nothing: {', '.join(map(str, found.dead))}.</p>")
    if verdict.findings:
        rows = [
            [
                f.words,
                f"{f.rule.limit} {f.rule.bound:g}",
                "first" if f.rule.grave else "when you can",
                f.rule.advice,
            ]
            for f in verdict.findings
        ]
        parts.append(html.table(rows, ["what is the matter", "expected", "when", "what to change"]))
    return "".join(parts)


def _figures(found: Inspection) -> str:
    rows = [[_NAMES[name], _value(figure), figure.protocol] for name, figure in found.figures.items()]
    shift = ", ".join(f"{step:+.2f}" for step in found.shift)
    rows.append(["colour shift", shift, "mean of reconstruction less original in each channel, of 0..255"])
    return html.table(rows, ["figure", "value", "how it was measured"])


def _value(figure: Figure) -> str:
    if figure.value is None:
        return "not measured"
    return f"{figure.value:.4g} {figure.unit}".strip()


def _worst(cases: Sequence[Case]) -> str:
    pictures = [
        html.picture(triptych(case), f"{case.psnr:.1f} dB · row {case.row} · {case.words}") for case in cases
    ]
    words = f"Original, reconstruction, and the error {ERROR_GAIN} times as bright."
    wide = (
        "<style>.triptychs figure { width: 17.5rem; } .triptychs img { image-rendering: pixelated; }</style>"
    )
    return f'{wide}<p>{words}</p><div class="triptychs">{"".join(pictures)}</div>'


def triptych(case: Case) -> Image.Image:
    """Original, reconstruction and error, side by side; at most 256 pixels each."""
    a, b = _as_shown(case.original), _as_shown(case.again)
    error = np.abs(a.astype(np.int16) - b.astype(np.int16)) * ERROR_GAIN
    images = [Image.fromarray(x) for x in (a, b, error.clip(0, 255).astype(np.uint8))]
    width, height = images[0].size
    if max(width, height) > _SIDE:
        size = (round(width * _SIDE / max(width, height)), round(height * _SIDE / max(width, height)))
        images = [image.resize(size, Image.Resampling.LANCZOS) for image in images]
        width, height = size
    whole = Image.new("RGB", (3 * width + 4, height), "white")
    for index, image in enumerate(images):
        whole.paste(image, (index * (width + 2), 0))
    return whole


def _as_shown(pixels: Tensor) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """``uint8`` or ``uint16 [c h w]`` as [h w 3]: colour, on white where transparent, or the first channel as grey."""
    values = pixels.float() / (255 if pixels.dtype == torch.uint8 else 65535)
    if len(values) == 4:
        values = values[:3] * values[3:] + 1 - values[3:]
    elif len(values) != 3:
        values = values[:1].expand(3, -1, -1)
    array: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]] = (
        (values * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().copy()
    )
    return array


def _latent(channels: Sequence[Channel]) -> str:
    charts = [_histogram(index, channel) for index, channel in enumerate(channels)]
    drawn = "".join(f'<div style="width: 14rem">{chart.svg()}</div>' for chart in charts)
    rows = [
        [
            index,
            f"{c.mean:+.3f}",
            f"{c.std:.3f}",
            _or_dash(c.spread, ".3f"),
            _or_dash(c.noise_share, ".1%"),
            _or_dash(c.kl, ".3f"),
            *(_or_dash(value, "+.2f") for value in c.correlation),
        ]
        for index, c in enumerate(channels)
    ]
    head = [
        "channel",
        "mean",
        "std",
        "posterior std",
        "its share of the variance",
        "KL, nats per position",
        *(f"neighbours at {lag}" for lag in LAGS),
    ]
    return (
        f'<div style="display: flex; flex-wrap: wrap; gap: 1rem">{drawn}</div>'
        f"<p>{legend(charts[0])}</p>" + html.table(rows, head)
    )


def _histogram(index: int, channel: Channel) -> Chart:
    """Density over standard deviations from the mean, with the Gaussian of the same mean and spread."""
    low, high = channel.edges
    unit = (high - low) / 8
    width = 8 / len(channel.histogram)
    places = [-4 + (k + 0.5) * width for k in range(len(channel.histogram))]
    found = [(x, density * unit) for x, density in zip(places, channel.histogram, strict=True)]
    gaussian = [(x, math.exp(-x * x / 2) / math.sqrt(2 * math.pi)) for x in places]
    top = max(0.6, *(y for _, y in found))
    step = next(s for s in (0.2, 0.5, 1, 2, 5, 10) if top <= 4 * s or s == 10)
    ticks = [k * step for k in range(math.ceil(top / step) + 1)]
    return Chart(
        f"channel {index}",
        "standard deviations",
        [Line("posterior means", found), Line("a Gaussian", gaussian)],
        x_ticks=(-4, -2, 0, 2, 4),
        y_ticks=[round(tick, 6) for tick in ticks],
    )


def _across(across: Tensor) -> str:
    """The matrix as coloured cells: blue is against each other, orange is together."""
    head = "".join(f"<th>{index}</th>" for index in range(len(across)))
    lines = []
    for index, row in enumerate(across.tolist()):
        cells = "".join(
            f'<td style="background: rgb({"230 159 0" if value > 0 else "0 114 178"} / {abs(value) * 0.8:.2f})">'
            f"{value:+.2f}</td>"
            for value in row
        )
        lines.append(f"<tr><th>{index}</th>{cells}</tr>")
    words = "Correlation of the channels' posterior means; far from 0, two channels say the same."
    table = f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"
    return f'<p>{words}</p><div style="overflow-x: auto">{table}</div>'


def _codebook(use: CodebookUse | str) -> str:
    if isinstance(use, str):
        return f"<p>Not measured: {use}.</p>"
    rows: list[list[object]] = [
        ["codes", use.codes],
        ["positions seen", use.positions],
        ["codes in use", f"{use.used} ({use.used / use.codes:.1%})"],
        ["even use would meet", f"{use.expected:.0f}"],
        ["perplexity", f"{use.perplexity:.1f}"],
    ]
    words = "Over the pictures measured and those of training that they are compared with. Perplexity: how many codes "
    return f"{html.table(rows)}<p>{words}even use of them would need.</p>"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
