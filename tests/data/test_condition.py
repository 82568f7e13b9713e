"""A condition may compare, calculate and test texts; whatever could take time or memory without end is refused."""

import time
from pathlib import Path

import pytest

from carrara.dataset import sql_condition
from carrara.dataset.dataset import Dataset
from carrara.dataset.sql_condition import FUNCTIONS, enclosed
from carrara.errors import UserError


@pytest.mark.parametrize(
    "where",
    [
        "width = 20", "width >= 1 AND (height < 99 OR NOT label = 'it''s')", "width IN (1, 20, 3)",
        "width BETWEEN 1 AND 20", "width * 2.5e0 - -1 <> .5", "width % 7 + height / 3 >= 0", "caption LIKE '%red%'",
        "caption NOT ILIKE 'RED; -- %'", "label IS NULL", "caption IS NOT NULL", "label IS DISTINCT FROM category",
        "`width` == 20", 'mode = "RGB"', "lower(caption) = 'red disc'", "coalesce(label, 'x') <> ')('",
        "array_has(string_to_array(caption, ' '), 'red')", "starts_with(source, 'red') AND length(caption) > 3",
        "abs(width - height) < 4\n\tAND TRUE", "id IN (" + ", ".join(f"'{k}'" for k in range(2000)) + ", id)",
    ],
)  # fmt: skip
def test_what_a_condition_may_have(dataset: Dataset, where: str) -> None:
    assert enclosed(where) == f"({where})"
    assert len(dataset.indices(None, where)) <= 24


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        *((f"{call}('a', 3) = 'aaa'", f"it calls '{call}'") for call in (
            "repeat", "REPEAT", "lpad", "rpad", "replace", "concat", "range", "array_repeat", "regexp_like", "`repeat`",
            "regexp_replace", "translate", "random", "sha512", "make_array", "CAST", "EXISTS", "array_resize")),
        ("repeat (label, 2) = 'x'", "it calls 'repeat'"),
        ("lower(repeat('a', 2)) = 'aa'", "it calls 'repeat'"),
        ("uper(caption) = 'X'", "did you mean 'upper'"),
        ("caption || caption = 'x'", r"\|\| caption = 'x'.* is nothing"),
        ("width::text = '2'", "::text = '2'.* is nothing"), ("width = 2; true", "'; true'"),
        ("width = 2 -- x", "'-- x'"),
        ("width /* x */ = 2", "'/"), ("caption ~ 'x'", "~ 'x'.* is nothing"),
        ("boxes[1] = 2", r"'\[1\]"), ("{x: 1} = 2", "'{x"),
        ("$$repeat$$ = label", r"'\$\$"), ("label = 'x", "is nothing that a condition has"),
        (r"E'\' = label", "between E and"), ("x'00' = id", "between x and"),
        ("date '2020-01-01' = id", "between date and"), ("CASE WHEN true THEN 1 END = 1", "between CASE and"),
        ("id IN (SELECT id FROM x)", "between SELECT and"), ("(id) (id)", r"between \) and \("),
        ("(" * 20 + "true" + ")" * 20, "too long"), ("NOT (" * 20 + "true" + ")" * 20, "too long"),
        (" AND ".join(["width = 1"] * 600), "too long"), ("(width = 1", "brackets do not match"),
        ("width = 1) OR (true", "brackets do not match"), ("  ", "is empty"),
    ],
)  # fmt: skip
def test_what_a_condition_may_not_have(where: str, reason: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=reason) as refused:
        enclosed(where)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 1500
    assert time.monotonic() - began < 1


def test_every_function_is_one_of_the_table(dataset: Dataset) -> None:
    given_of = {
        "abs": "width", "round": "width", "left": "caption, 1", "right": "caption, 1",
        "array_has": "string_to_array(caption, ' '), 'red'", "string_to_array": "caption, ' '",
    }  # fmt: skip
    two = {"greatest", "least", "coalesce", "nullif", "contains", "starts_with", "ends_with", "strpos"}
    for name in FUNCTIONS:
        given = given_of.get(name) or "caption" + ", 'red'" * (name in two | {"contains_tokens"})
        call = "strpos(substr(caption, 2), 'e')" if name == "substr" else f"{name}({given})"
        dataset.indices(None, f"{call} IS NOT NULL")


def test_a_condition_has_its_time(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_condition, "SECONDS", -1.0)
    with pytest.raises(UserError, match="the condition takes longer than -1 s"):
        dataset.indices("train", "width > 3")
    assert len(dataset.indices("train"))


def test_a_table_whose_files_are_gone(dataset: Dataset, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(dataset.path, tmp_path / "d")
    opened = Dataset.open(tmp_path / "d")
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(UserError, match=r"^cannot read /.*pictures\.lance/data/.*: it is not there$"):
        opened.indices(None, "width > 3")
