"""The one folder on disk for downloads, answers and second moments."""

import re
from pathlib import Path

import platformdirs
import pytest
from platformdirs import unix, windows

from kn_bench.model.cache_folder import cache_folder

ROOT = Path(__file__).resolve().parent.parent


def test_the_environment_names_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KN_BENCH_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


@pytest.mark.parametrize("system", [unix.Unix, windows.Windows])
def test_the_default_names_the_package_once_on_every_system(monkeypatch, system):
    """Windows puts an author's folder around it unless told not to: kn_bench/kn_bench."""
    monkeypatch.delenv("KN_BENCH_CACHE", raising=False)
    monkeypatch.setenv("WIN_PD_OVERRIDE_LOCAL_APPDATA", "C:/Users/me/AppData/Local")
    monkeypatch.setattr(platformdirs, "PlatformDirs", system)
    assert cache_folder().parts.count("kn_bench") == 1


def test_no_other_module_looks_for_the_cache_folder():
    elsewhere = [
        str(path.relative_to(ROOT))
        for folder in ("kn_bench", "edits", "suites", "benchmarks", "training")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"platformdirs|environ.*KN_BENCH_CACHE", path.read_text())
    ]
    assert elsewhere == ["kn_bench/model/cache_folder.py"]
