"""The board as one HTML file that needs no network, and no other file."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

from kn_bench.results.files import write_text
from kn_bench.results.loading import Runs
from kn_bench.results.payload import EMBEDDED, as_text, payload

TITLE = "kn_bench leaderboard"


def page(runs: Runs, *, embedded: int = EMBEDDED) -> str:
    """Return the page of ``runs`` with all its data, or a sample of it."""
    return render(as_text(payload(runs, embedded=embedded)))


def write_page(runs: Runs, target: Path) -> None:
    """Write the page of ``runs`` to ``target``.

    Raises:
        StoreError: when it cannot be written.
    """
    write_text(target, page(runs))


def render(data: str, *, connect: str = "'none'") -> str:
    """Return the page around ``data``; "" for a page that fetches it from ``connect``.

    The policy lets the page's own script and style run, and nothing else: no text that slipped in
    could load or send anything.
    """
    from jinja2 import Environment

    style, script = _file("style.css"), _file("app.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            f"connect-src {connect}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    template = Environment(autoescape=True).from_string(_file("page.html.j2"))
    return template.render(title=TITLE, policy=policy, style=style, script=script, data=data)


def _file(name: str) -> str:
    return resources.files("kn_bench.results").joinpath("page", name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
