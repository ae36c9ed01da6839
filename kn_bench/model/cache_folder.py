"""The folder on disk that holds what is expensive to fetch or to compute."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Return the folder for downloads, answers and second moments.

    It is ``KN_BENCH_CACHE`` where that is set, else the user's cache folder.
    """
    chosen = os.environ.get("KN_BENCH_CACHE")
    # appauthor: without it Windows would nest the folder in another of the same name
    return Path(chosen) if chosen else platformdirs.user_cache_path("kn_bench", appauthor=False)
