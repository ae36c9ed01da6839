"""What the README shows is run as it stands."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def python_blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_method_in_the_readme_is_measured(tmp_path):
    (block,) = python_blocks()
    method = [line for line in block.splitlines() if line.strip()]
    assert len(method) < 30
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
