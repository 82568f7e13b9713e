"""The house keeps its plan: imports go one way, files and functions fit in one head, names say what is inside."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import carrara

ROOT = Path(carrara.__file__).parent
FILES = {
    ".".join(["carrara", *file.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): file
    for file in sorted(ROOT.rglob("*.py"))
}
Graph = Mapping[str, set[str]]


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imported(module: str) -> set[str]:
    """The files that a file imports anywhere: at its top, in functions, for types alone."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & FILES.keys()) or {node.module or ""}
    return (found & FILES.keys()) - {module}


def room(module: str) -> str:
    return module.split(".")[1]


def rooms(graph: Graph) -> Graph:
    """Which rooms each imports; the package itself is the face of all of them and none."""
    inner = {
        module: {m for m in found if m != "carrara"} for module, found in graph.items() if module != "carrara"
    }
    return {
        name: {room(m) for module, found in inner.items() if room(module) == name for m in found} - {name}
        for name in map(room, inner)
    }


def circles(graph: Graph) -> list[list[str]]:
    """What reaches itself (Tarjan 1972), each circle sorted."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == number[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return found


GRAPH: Graph = {module: imported(module) for module in FILES}


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "c"}}) == [["b", "c"]]


def test_no_files_import_each_other() -> None:
    assert circles(GRAPH) == []


def test_rooms_have_an_order() -> None:
    assert circles(rooms(GRAPH)) == []


def test_the_four_rooms_of_a_model_never_meet() -> None:
    four = {"conditions", "autoencoders", "denoisers", "diffusion"}
    assert {
        (one, other) for one, found in rooms(GRAPH).items() if one in four for other in found & four
    } == set()


def test_nothing_imports_the_command_line() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, found in GRAPH.items()
        if module != "carrara.__main__" and not module.startswith("carrara.cli")
        for other in found
        if other.startswith("carrara.cli")
    ]
    assert wrong == []


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_a_file_fits_in_one_head() -> None:
    lengths = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in FILES.items()}
    assert {module: length for module, length in lengths.items() if length > 400} == {}


def test_a_function_fits_on_a_screen() -> None:
    lengths = {
        f"{module}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module in FILES
        for node in functions(module)
    }
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_a_signature_is_short() -> None:
    counts = {
        f"{module}.{node.name}": sum(
            a.arg not in ("self", "cls")
            for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        )
        for module in FILES
        for node in functions(module)
    }
    assert {name: count for name, count in counts.items() if count > 8} == {}


def stem(word: str) -> str:
    """A word without its ending: "boxes" and "box", "tile" and "tiling"."""
    short = re.sub(r"(ations?|ings?|ions?|ers?|ed|ies|es|e|y|s)$", "", word)
    return re.sub(r"(.)\1$", r"\1", short) if len(short) > 2 else word


def alike(one: str, other: str) -> bool:
    """Whether two words have a stem in common."""
    short, long = sorted((stem(one), stem(other)), key=len)
    return short == long or (len(short) > 2 and long.startswith(short) and len(long) - len(short) <= 3)


def words(text: str) -> list[str]:
    """The words of a sentence, two neighbours as one ("data set", "U-Net"), and initials of what stands together."""
    found = [word for word in re.split(r"[\W_\d]+", text.lower()) if word]
    pairs = [one + other for one, other in pairwise(found)]
    initials = "".join(word[0] for word in found)
    return [*found, *pairs, *(initials[i : i + n] for n in (2, 3) for i in range(len(initials) - n + 1))]


@pytest.mark.parametrize(
    ("one", "other", "same"), [("box", "boxes", True), ("tile", "tiling", True), ("loop", "look", False)]
)
def test_stems(one: str, other: str, same: bool) -> None:
    assert alike(one, other) is same


def test_the_first_sentence_of_a_file_speaks_of_its_name() -> None:
    sentences = {
        module: re.split(r"(?<!\bal)\.\s|\n\n", ast.get_docstring(tree(module)) or "", maxsplit=1)[0]
        for module, file in FILES.items()
        if not file.name.startswith("__")
    }
    silent = {
        module: sentence
        for module, sentence in sentences.items()
        if not any(
            alike(word, part) for word in words(sentence) for part in module.rpartition(".")[2].split("_")
        )
    }
    assert silent == {}
