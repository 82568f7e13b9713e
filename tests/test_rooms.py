"""Imports go one way: a room knows only the rooms below it (docs: the source, a line a room)."""

import ast
from pathlib import Path

import carrara

ROOT = Path(carrara.__file__).parent
RANKS = {
    **dict.fromkeys(
        [
            "errors",
            "files",
            "config",
            "tensors",
            "context",
            "layers",
            "model_folder",
            "parts",
            "console",
            "progress",
        ],
        0,
    ),
    **dict.fromkeys(["autoencoders", "conditions", "denoisers", "diffusion"], 1),
    **dict.fromkeys(["data", "generation"], 2),
    **dict.fromkeys(["training", "evaluation"], 3),
    **dict.fromkeys(["recipes", "interop"], 4),
    **dict.fromkeys(["serving", "cli", "quickstart", "__main__"], 5),
    **dict.fromkeys(
        [
            "cli_data",
            "cli_show",
            "cli_inspect",
            "cli_exchange",
            "cli_reconstruct",
            "cli_average",
            "cli_plan",
            "cli_doctor",
            "cli_versions",
            "cli_search",
            "cli_copies",
            "cli_keep",
            "cli_browse",
            "cli_export",
            "cli_engine",
            "cli_index",
            "cli_models",
            "cli_sample",
            "cli_train",
            "cli_progress",
        ],
        5,
    ),
}
STRANGERS = {"autoencoders", "conditions", "denoisers", "diffusion"}  # these never meet each other


def rooms_imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        found |= {name.split(".")[1] for name in names if name.startswith("carrara.")}
    return found


def test_every_module_has_a_rank() -> None:
    tops = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert tops - {"__init__"} == set(RANKS)


def test_imports_go_one_way() -> None:
    wrong = []
    for file in sorted(ROOT.rglob("*.py")):
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in rooms_imported(file):
            if RANKS[other] > RANKS[room] or (room in STRANGERS and other in STRANGERS - {room}):
                wrong.append(f"{file.relative_to(ROOT)} imports {other}")
    assert wrong == []
