#!/usr/bin/env bash
# In a filter of a Lance table a name in double quotes is not a column, as in standard SQL, but a text, without a word:
# "label" IS NOT NULL is true of every row, also where the column is null, and "label" = 'cat' of none. Backticks name
# a column.
#
# pylance 14.0.2. Seen: label IS NOT NULL 1 row, `label` IS NOT NULL 1 row, "label" IS NOT NULL 2 rows,
# label = 'cat' 1 row, "label" = 'cat' 0 rows
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'pylance==14.0.2' 'pyarrow==26.0.1' 'numpy==2.4.6'
"$work/venv/bin/python" - "$work/table.lance" <<'PY'
import sys

import lance
import pyarrow as pa

table = lance.write_dataset(pa.table({"label": ["cat", None]}), sys.argv[1])
expected = {
    "label IS NOT NULL": 1,
    "`label` IS NOT NULL": 1,
    '"label" IS NOT NULL': 2,
    "label = 'cat'": 1,
    "\"label\" = 'cat'": 0,
}
found = {where: table.count_rows(filter=where) for where in expected}
for where, count in found.items():
    print(f"{where}: {count}")
assert found == expected, found
PY
