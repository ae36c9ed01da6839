"""Refuses to test another copy of kn_bench than the one in this checkout."""

from pathlib import Path

import pytest

import kn_bench

pytest_plugins = ["pytester"]


def pytest_configure() -> None:
    here, imported = Path(__file__).resolve().parent, Path(kn_bench.__file__).resolve().parent
    if imported != here / "kn_bench":
        raise pytest.UsageError(
            f"kn_bench is imported from {imported}, not from this checkout ({here}): "
            "run `pip install -e .` here, or uninstall the other copy"
        )
