"""The table of methods names every method, and a closed-form method is as short as the docs say."""

import ast
import re
from pathlib import Path

import pytest

from kn_bench.editing import builtin

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "methods.md"
FAMILY = ("memit", "memit_seq", "memit_merge", "emmet", "pmet", "encore", "alphaedit", "nas")


def test_the_table_names_every_method():
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert named == set(builtin.names())


def test_the_method_shown_is_the_file():
    shown = re.search(
        r"```python\n(from kn_bench.editing.closed_form.*?)```", PAGE.read_text(), re.S
    )
    assert shown is not None
    assert shown[1] in (ROOT / "edits" / "memit_seq.py").read_text()


@pytest.mark.parametrize("stem", FAMILY)
def test_a_closed_form_method_is_at_most_30_lines(stem):
    (path,) = (path for path in builtin.files() if path.stem == stem)
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text), clean=False) or ""
    code = [line for line in text.replace(docstring, "").splitlines() if line.strip()]
    assert len(code) <= 30, len(code)
