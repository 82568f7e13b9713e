"""The tables of docs/scale.md: what a data set of so many pairs takes up, how long each step lasts, what it costs.

    python bench/scale_plan.py                          # 5.85 billion pairs, by the rates in bench/results
    python bench/scale_plan.py --pairs 2e8 --price 0.03 --picture-bytes 60000 --set latent_per_s=400

Every number comes from the JSON of rates (python bench/scale_rates.py --json FILE writes one of your own machine) and
from the options; `--set NAME=VALUE` puts a measurement of yours in place of one of its.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from carrara.search.by_vector import Effort

RESULTS = Path(__file__).parent / "results" / "scale_rates_cpu.json"
PAIRS = 5.85e9  # LAION-5B (Schuhmann et al. 2022)
A_SHARD = 10_000  # samples of a tar, as img2dataset writes them
A_FRAGMENT = 2**15  # rows of a file of the table after `carrara data clean`
WRITTEN = 2048  # rows of one as an import writes it
TABLES = 256  # by the first byte of the id
WORKERS = (2, 64, 512, 4096)

Rates = Mapping[str, float]


@dataclass(frozen=True)
class Step:
    """One of the commands: how many of its units there are, and how many a processor does in a second."""

    name: str
    units: float
    per_s: float
    by: str

    def hours(self, workers: int) -> float:
        """With so many processors, all at work until the end."""
        return self.units / self.per_s / workers / 3600


def vectors_per_s(pairs: float, rates: Rates) -> float:
    """Each of a table's vectors is compared with each of its cells, in its whole width, at training as well."""
    width = rates["feature_bytes"] / 2
    cells = Effort.of(int(pairs / TABLES), int(width)).cells
    return rates["vectors_per_s"] * rates["cells"] * rates["width"] / (cells * width)


def steps(pairs: float, rates: Rates) -> list[Step]:
    """In the order in which they are done."""
    return [
        Step("import", pairs, rates["import_per_s"], "import_per_s"),
        Step("encode: features", pairs, rates["feature_per_s"], "feature_per_s"),
        Step("encode: latents", pairs, rates["latent_per_s"], "latent_per_s"),
        Step("index: words", pairs, rates["words_per_s"], "words_per_s"),
        Step("index: vectors", pairs, vectors_per_s(pairs, rates), "vectors_per_s"),
    ]


def storage(rates: Rates, picture_bytes: float) -> list[tuple[str, float]]:
    """Bytes of a pair by what they are."""
    return [
        ("picture, as given", picture_bytes),
        ("its row: id, caption, size, split …", rates["row_bytes"]),
        ("latents, float16", rates["latent_bytes"]),
        ("features, float16", rates["feature_bytes"]),
        ("index of the words", rates["words_bytes"]),
        ("index of the vectors", rates["vectors_bytes"] * rates["feature_bytes"] / 2 / rates["width"]),
    ]


def limits(pairs: float, rates: Rates, tables: int) -> list[tuple[str, str, str]]:
    """What one table would have to bear, and what each of ``tables`` has."""

    def row(what: str, value: float, unit: float, called: str) -> tuple[str, str, str]:
        return what, f"{value / unit:,.1f} {called}", f"{value / tables / unit:,.2f} {called}"

    fragments = pairs / WRITTEN
    return [
        row("pictures known to a writer, in memory", pairs * rates["known_bytes"], 2**30, "GiB"),
        row(
            "what each worker reads of it, of others' rows twice",
            2 * pairs / rates["known_per_s"],
            3600,
            "hours",
        ),
        row("files, as the import writes them", fragments, 1, "files"),
        row("files, after `clean`", pairs / A_FRAGMENT, 1, "files"),
        row(
            "what each commit writes (the list of files)",
            fragments * rates["manifest_bytes_a_fragment"],
            2**20,
            "MiB",
        ),
        row("parts to publish, one after another", pairs / A_SHARD, 1, "commits"),
    ]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def short(value: float) -> str:
    """Three digits, with commas between thousands."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def plan(pairs: float, rates: Rates, *, picture_bytes: float, price: float, stored: float) -> str:
    """All tables."""
    parts = storage(rates, picture_bytes)
    total = sum(size for _, size in parts)
    lines = [[name, short(size), short(size * pairs / 1e12)] for name, size in parts]
    lines.append(["all", short(total), short(total * pairs / 1e12)])
    monthly = short(total * pairs / 1e9 * stored)
    found = [f"**Storage** of {pairs:,.0f} pairs; a month of it at {stored} a GB costs {monthly}."]
    found.append(table(["of a pair", "bytes", "TB in all"], lines))

    done = steps(pairs, rates)
    lines = [
        [
            s.name,
            short(s.per_s),
            *(short(s.hours(n)) for n in WORKERS),
            short(s.hours(1)),
            short(s.hours(1) * price),
        ]
        for s in done
    ]
    hours = sum(s.hours(1) for s in done)
    lines.append(["all", "", *(short(hours / n) for n in WORKERS), short(hours), short(hours * price)])
    found.append(f"**Hours**, and the cost at {price} an hour of one processor.")
    workers = [f"{n:,} workers" for n in WORKERS]
    found.append(table(["step", "a second and processor", *workers, "processor-hours", "cost"], lines))

    found.append(f"**Limits**: one table, and each of {TABLES}.")
    found.append(table(["what", "one table", f"one of {TABLES}"], limits(pairs, rates, TABLES)))
    seconds = A_SHARD / rates["import_per_s"]
    found.append(
        f"{pairs / A_SHARD:,.0f} tars of {A_SHARD:,} pairs. A worker takes one in in {short(seconds)} s, so "
        f"{WORKERS[2]} workers finish {short(WORKERS[2] * 3600 / seconds)} parts an hour, each of which is a commit."
    )
    return "\n\n".join(found) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=float, default=PAIRS)
    parser.add_argument("--rates", type=Path, default=RESULTS)
    parser.add_argument(
        "--picture-bytes", type=float, help="of one picture; those of the measured ones if not given"
    )
    parser.add_argument("--price", type=float, default=0.04, help="of one processor for an hour")
    parser.add_argument("--stored", type=float, default=0.023, help="of a GB for a month")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="in place of a measured rate"
    )
    given = parser.parse_args()
    rates = {k: v for k, v in json.loads(given.rates.read_text()).items() if isinstance(v, int | float)}
    for name, _, value in (pair.partition("=") for pair in given.set):
        if name not in rates:
            parser.error(f"no rate is called {name!r}; there are {', '.join(rates)}")
        rates[name] = float(value)
    size = given.picture_bytes or rates["picture_bytes"]
    print(plan(given.pairs, rates, picture_bytes=size, price=given.price, stored=given.stored))


if __name__ == "__main__":
    main()
