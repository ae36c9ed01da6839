"""A plug-in, given by ``-p``, that ends the session once its command line has been checked."""

from __future__ import annotations

import pytest


def pytest_sessionstart() -> None:
    """End the session: its controller has refused by now what cannot be measured."""
    pytest.exit("the command line can be run", returncode=0)
