"""Which way finds a picture by a caption in which language: recall@5 among held-out pictures, a row a language.

    carrara data import emoji data/emoji --set all --held-out 0.2
    carrara data encode data/emoji --meaning
    carrara train contrastive data/emoji --out runs/joint
    python bench/search_by_language.py data/emoji runs/joint --json bench/results/search_by_language_cpu.json

Each held-out picture is asked for by its own caption in the language, among all held-out pictures. Columns: full text
where captions in that language are stored; full text, and meaning (`use`), where only English ones are; and the joint
space, which sees no caption of these pictures at all and has never met them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carrara.dataset.dataset import Dataset
from carrara.dataset.subset import subset
from carrara.embedders.embed_dataset import embedded
from carrara.embedders.embedders import open_embedder
from carrara.metrics.recall import ranks
from carrara.search.by_words import by_words, index_words

K = 5
ENGLISH = "caption_en"


def vectors(dataset: Dataset, column: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    values = dataset.take_arrow(rows, [column])[column].combine_chunks().flatten()
    found: npt.NDArray[np.float32] = values.to_numpy(zero_copy_only=False).astype(np.float32)
    return found.reshape(len(rows), -1)


def by_text(dataset: Dataset, texts: list[str]) -> float:
    """Recall of full text over the captions that the data set has; row i answers text i."""
    index_words(dataset)
    found = [by_words(dataset, text, where=None, limit=K).rows for text in texts]
    return float(np.mean([row in rows for row, rows in enumerate(found)]))


def only(dataset: Dataset, rows: npt.NDArray[np.int64], column: str, place: Path) -> Dataset:
    """A copy of some rows with one caption column."""
    copy = subset(dataset, rows, place, why="to measure search")
    copy.table.drop_columns([c for c in copy.captions.values() if c != column])
    copy.refresh()
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("joint", type=Path, help="a run of `carrara train contrastive` on it")
    parser.add_argument("--languages", nargs="+", default=["en", "de", "zh", "ja", "ar", "ru", "fa"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    dataset, joint, use = Dataset.open(given.data), open_embedder(given.joint), open_embedder("use")
    rows = dataset.indices("held_out", f"{ENGLISH} IS NOT NULL")
    assert joint.picture_lift is not None
    assert joint.texts is not None
    below = embedded(dataset, joint.picture_lift.below, "image")
    english = embedded(dataset, use, ENGLISH)
    assert below is not None
    assert english is not None
    seen = joint.picture_lift.lift(vectors(dataset, below, rows))
    meant = vectors(dataset, english, rows)
    table = {}
    print(f"recall@{K} among {len(rows)} held-out pictures")
    print(f"{'':4} {'words, own':>12} {'words, en':>12} {'meaning, en':>12} {'joint':>8}")
    with tempfile.TemporaryDirectory() as folder:
        in_english = only(dataset, rows, ENGLISH, Path(folder) / "en-only")
        for language in given.languages:
            column = dataset.captions[language]
            texts = dataset.take(rows, [column])[column]
            own = only(dataset, rows, column, Path(folder) / language)
            asked = use.texts(texts) if use.texts else np.empty(0)
            table[language] = {
                "words_own": by_text(own, texts),
                "words_en": by_text(in_english, texts),
                "meaning_en": float((ranks(asked, meant) <= K).mean()),
                "joint": float((ranks(joint.texts(texts), seen) <= K).mean()),
            }
            cells = table[language]
            print(
                f"{language:4} {cells['words_own']:12.3f} {cells['words_en']:12.3f} {cells['meaning_en']:12.3f} "
                f"{cells['joint']:8.3f}",
                flush=True,
            )
    if given.json:
        document = {"recall_at": K, "pictures": len(rows), "by_language": table}
        given.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
