"""What the README and the documentation show is run as it stands."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kn_bench as kn
from kn_bench.testing.options import add_options

README = Path(__file__).parent.parent / "README.md"
ROOT = README.parent


def python_block(start):
    """The Python block of the README that begins with ``start``."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (block,) = (block for block in blocks if block.startswith(start))
    return block


def run_script(script, folder):
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_readme_is_read_in_two_minutes():
    assert len(README.read_text().split()) < 900


def test_the_boards_lines_are_those_of_the_example():
    board = (ROOT / "reports/example/leaderboard.md").read_text().splitlines()
    lines = README.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|method"))
    shown = lines[start : lines.index("", start)]
    assert len(shown) >= 10
    assert not [line for line in shown if line not in board]


def test_the_five_lines_edit_a_fact_and_print_a_board(tmp_path):
    script = tmp_path / "five_lines.py"
    script.write_text(python_block("import kn_bench as kn"))
    statements = ast.parse(script.read_text()).body
    assert len([s for s in statements if not isinstance(s, ast.Import)]) <= 5
    run = run_script(script, tmp_path)
    assert run.returncode == 0, run.stderr
    fact = kn.load_cases("embedded", relation="P36", limit=5)[0].request
    assert run.stdout.strip().startswith(fact.target_new)
    board = run.stdout.partition("\n")[2]
    assert re.search(r"^(\d+ +)?rome +.*\b100\b", board, re.MULTILINE), board


def test_the_session_in_the_documentation_prints_what_is_kept(tmp_path):
    """The whole of it: verdicts and rounded figures, and no time that an edit took."""
    script = ROOT / "docs/examples/session.py"
    imported = {
        alias.name
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {"kn_bench", "tempfile", "Path"}
    run = run_script(script, tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout == script.with_suffix(".txt").read_text()
    assert not list(tmp_path.iterdir())


def test_the_method_in_the_readme_is_measured(tmp_path):
    block = python_block("import torch")
    method = [line for line in block.splitlines() if line.strip()]
    assert len(method) < 30
    imports = [n for n in ast.parse(block).body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert [getattr(n, "module", None) or n.names[0].name for n in imports] == ["torch", "kn_bench"]
    (tmp_path / "conftest.py").write_text(block)
    command = [sys.executable, "-m", "pytest", "--pyargs", "kn_bench.suites", "-p", "no:xdist"]
    options = ["--method", "fine-tune", "--model", "tiny-gpt2", "--relation", "P36", "--limit", "2"]
    run = subprocess.run(
        [*command, *options, "-v", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    board = (tmp_path / "reports" / "leaderboard.md").read_text()
    assert "fine-tune" in board
    reliable = re.findall(r"test_reliability\[fine_tune-tiny_gpt2-P36/\S+\] (\w+)", run.stdout)
    assert reliable == ["PASSED", "PASSED"]


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert targets
    assert not [target for target in targets if not (README.parent / target).exists()]


def test_the_table_of_options_has_every_option():
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    names = {name for option in parser.getgroup("kn_bench").options for name in option.names()}
    running = (README.parent / "docs" / "running.md").read_text()
    assert len(names) > 30
    assert not [name for name in sorted(names) if not re.search(rf"`{name}\b", running)]


def test_the_page_of_the_session_takes_both_files_in():
    """A formatter of the code in documents once took the line for Python and spaced it out."""
    page = (ROOT / "docs" / "session.md").read_text()
    taken = re.findall(r'^--8<-- "(.*)"$', page, re.MULTILINE)
    assert taken == ["docs/examples/session.py", "docs/examples/session.txt"]
