"""``--generations`` and ``--references``: what is written freely, and how it is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kn_bench.testing.options import Options

if TYPE_CHECKING:
    from kn_bench.measure.writing import Writer


def writer(options: Options) -> Writer | None:
    """Return what has the models write; None where nobody asked for it.

    Raises:
        ValueError: one sentence, when it cannot be measured.
    """
    if not options.generations:
        return None
    from kn_bench.measure.writing import Writer, read_references

    references = read_references(options.references) if options.references else None
    return Writer(options.generations, references, options.seed)


def described(options: Options) -> dict[str, str]:
    """Return what a run's manifest says of its generations; raises as :func:`writer` does."""
    asked = writer(options)
    return asked.described if asked else {}
