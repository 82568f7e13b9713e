"""What a user finds who types into the search of the quickstart set: recall@5 of names and descriptions by language.

    carrara data import emoji data/emoji
    carrara data encode data/emoji --meaning
    python bench/search_plainly.py data/emoji --json bench/results/search_plainly_cpu.json

Captions are there in every language, as the import brings them. Names: pictures drawn by chance are asked for by their
own caption in the language, among all pictures, by words alone and by default (every way there is). Descriptions: what
hardly any caption says; found is where one of the first five fits. Which do is written below.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from carrara.config import parse
from carrara.dataset.dataset import Dataset
from carrara.embedders.embedders import embedder_of
from carrara.search.query import Query
from carrara.search.search import search

K = 5
LANGUAGES = ["en", "de", "zh", "ja", "ar"]
# English captions that fit, and the description in each of the languages, in their order.
DESCRIPTIONS: list[tuple[set[str], list[str]]] = [
    (
        {"whale", "spouting whale", "dolphin", "fish", "shark", "octopus", "jellyfish", "seal", "tropical fish"},
        ["animals in the sea", "Tiere im Meer", "海里的动物", "海の生き物", "حيوانات البحر"],
    ),
    (
        {"red apple", "green apple", "pear", "banana", "lemon", "tangerine", "peach", "strawberry", "kiwi fruit"},
        ["sweet fruit", "süßes Obst", "甜的水果", "甘い果物", "فاكهة حلوة"],
    ),
    (
        {"broccoli", "leafy green", "cucumber", "carrot", "green salad", "bell pepper", "eggplant", "potato"},
        ["vegetables", "Gemüse", "蔬菜", "野菜", "خضروات"],
    ),
    (
        {"wine glass", "beer mug", "cocktail glass", "tropical drink", "clinking beer mugs", "sake", "tumbler glass"},
        ["alcohol to drink", "Alkohol zum Trinken", "喝酒", "お酒を飲む", "مشروب كحولي"],
    ),
    (
        {"crying face", "loudly crying face", "sad but relieved face", "crying cat", "pensive face", "frowning face"},
        ["sad and in tears", "traurig und weinend", "伤心流泪", "悲しくて泣いている", "حزين ويبكي"],
    ),
    (
        {"enraged face", "angry face", "face with symbols on mouth", "face with steam from nose", "anger symbol"},
        ["furious", "wütend", "愤怒", "激怒している", "غاضب جدا"],
    ),
    (
        {"ant", "honeybee", "beetle", "lady beetle", "cricket", "cockroach", "butterfly", "bug", "mosquito", "fly"},
        ["insects", "Insekten", "昆虫", "昆虫", "حشرات"],
    ),
    (
        {"rose", "tulip", "sunflower", "hibiscus", "white flower", "blossom", "cherry blossom", "bouquet", "hyacinth"},
        ["flowers in the garden", "Blumen im Garten", "花园里的花", "庭の花", "زهور في الحديقة"],
    ),
    (
        {"birthday cake", "shortcake", "cupcake", "pie", "doughnut", "cookie", "chocolate bar", "ice cream", "candy"},
        ["dessert", "Nachtisch", "甜点", "デザート", "حلويات"],
    ),
    (
        {"face with medical mask", "face with thermometer", "nauseated face", "sneezing face", "face vomiting"},
        ["ill", "krank", "生病", "病気", "مريض"],
    ),
    (
        {"kiss mark", "face blowing a kiss", "smiling face with hearts", "love letter", "two hearts", "red heart"},
        ["to be in love", "verliebt sein", "恋爱", "恋をしている", "الحب"],
    ),
    (
        {"dog", "dog face", "poodle", "guide dog", "service dog"},
        ["puppy", "Welpe", "小狗", "子犬", "جرو"],
    ),
]  # fmt: skip


def found(dataset: Dataset, words: str, by: str) -> list[int]:
    query = parse(Query, {"words": words, "by": by, "limit": K}, where="the bench")
    return [hit.row for hit in search(dataset, query, lambda column: embedder_of(dataset, column)).hits]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--languages", nargs="+", default=LANGUAGES, choices=LANGUAGES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    dataset = Dataset.open(given.data)
    drawn = np.random.default_rng(given.seed).permutation(len(dataset))[: given.pictures].tolist()
    english = dataset.column("caption_en")
    table = {}
    print(f"recall@{K} of {len(drawn)} names and {len(DESCRIPTIONS)} descriptions among {len(dataset)}")
    for language in given.languages:
        place = LANGUAGES.index(language)
        names = dataset.take(drawn, [dataset.captions[language]])[dataset.captions[language]]
        cells = {
            f"names_{by}": float(
                np.mean([row in found(dataset, name, by) for row, name in zip(drawn, names, strict=True)])
            )
            for by in ("words", "auto")
        }
        for by in ("words", "auto"):
            firsts = [(fits, found(dataset, asked[place], by)) for fits, asked in DESCRIPTIONS]
            right = [any(english[row] in fits for row in rows) for fits, rows in firsts]
            cells[f"descriptions_{by}"] = float(np.mean(right))
        table[language] = cells
        print(language, "  ".join(f"{name} {value:.2f}" for name, value in cells.items()), flush=True)
    if given.json:
        document = {"recall_at": K, "pictures": len(dataset), "names": len(drawn), "by_language": table}
        given.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
