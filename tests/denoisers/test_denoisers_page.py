"""The page about denoisers tells networks that can be built, as large as it says."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

from carrara.denoisers import unet

PAGE = Path(__file__).parents[2] / "docs" / "denoisers.md"
ROWS = re.findall(
    r"^\| ([^|]+) \| `([^`|]+=[^`|]+)` \| (\d+) \|([^|]*)\| ([\d,]+) \|$", PAGE.read_text("utf-8"), re.M
)


def test_every_row_is_read() -> None:
    assert len(ROWS) == 8


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_published_network_is_as_large_as_the_page_says(row: tuple[str, ...]) -> None:
    _, settings, channels, roles, weights = row
    values = tomllib.loads(settings.replace(" ", "\n"))
    widths = {role: int(width) for role, width in re.findall(r"(\w+) (\d+)", roles)}
    with torch.device("meta"):
        network = unet.Config(**values).build(channels=int(channels), **widths)
    assert sum(p.numel() for p in network.parameters()) == int(weights.replace(",", ""))
