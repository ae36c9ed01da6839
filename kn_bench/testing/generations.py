"""``--generations`` and ``--references``: what is written freely, and how it is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kn_bench.testing.options import Options

if TYPE_CHECKING:
    from kn_bench.measure.writing import References, Writer


def writer(options: Options) -> Writer | None:
    """Return what has the models write; None where nobody asked for it."""
    if not options.generations:
        return None
    from kn_bench.measure.writing import Writer

    return Writer(options.generations, _references(options), options.seed)


def described(options: Options) -> dict[str, str]:
    """Return what a run's manifest says of its generations.

    Raises:
        ValueError: one sentence, when they cannot be measured.
    """
    if not options.generations:
        return {}
    from kn_bench.measure.text_metrics import check_tokenizer

    check_tokenizer()
    references = _references(options)
    return {
        "generations": str(options.generations),
        **({"references": references.content_hash} if references else {}),
    }


def _references(options: Options) -> References | None:
    from kn_bench.measure.writing import read_references

    return read_references(options.references) if options.references else None
