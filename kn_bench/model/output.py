"""Limit what transformers prints as it loads and saves: bars on a terminal, nothing in a log."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def progress_on_terminals_only() -> Iterator[None]:
    """Silence transformers' progress bars while open, unless standard error is a terminal."""
    from transformers.utils import logging

    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        # the bar for reading GGUF ignores the setting
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.enable_progress_bar()
