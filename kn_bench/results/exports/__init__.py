"""The board in other tools' formats, one module a format.

.md  .html  .csv  .parquet  .tex      by the ending of the file
every-eval-ever                       a folder: figures, and their instances, per model and run
hub                                   a folder: .eval_results YAML for each model's repository
inspect                               a folder: one log a method and model, for inspect's viewer
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kn_bench.results.files import StoreError
from kn_bench.results.loading import Runs

Write = Callable[[Runs, Path], None]
ENDINGS = {
    ".md": "markdown",
    ".html": "html",
    ".csv": "csv",
    ".parquet": "parquet",
    ".tex": "latex",
}
"""Ending of a file -> its format."""
FOLDERS = ("every-eval-ever", "hub", "inspect")
"""Formats that are several files: the output names a folder."""
FORMATS = (*ENDINGS.values(), *FOLDERS)


def chosen(output: Path, format: str = "") -> Write:
    """Return what writes the board to ``output``.

    Args:
        output: a file, or for a format of several files a folder.
        format: one of ``FORMATS``; "" for the one that the ending names.

    Raises:
        StoreError: for an unknown format or ending, or an ending that contradicts the format.
    """
    by_ending = ENDINGS.get(output.suffix)
    name = format or by_ending
    known = ", ".join(ENDINGS)
    if name is None or (format and format not in FORMATS):
        if format:
            raise StoreError(f"--format {format}: expected one of {', '.join(FORMATS)}")
        raise StoreError(
            f"-o {output}: expected a file that ends in {known}, or --format "
            f"{' or '.join(FOLDERS)} and a folder"
        )
    if name in FOLDERS and (output.is_file() or by_ending):
        raise StoreError(
            f"-o {output}: expected a folder, since --format {name} writes several files; name one"
        )
    if format and name not in FOLDERS and name != by_ending:
        ending = next(e for e, n in ENDINGS.items() if n == name)
        raise StoreError(
            f"-o {output}: expected a file that ends in {ending} for --format {name}; rename it"
        )
    return _writers()[name]


def _writers() -> dict[str, Write]:
    """Format -> what writes it; each is imported when it is asked for."""
    from kn_bench.results import html, leaderboard
    from kn_bench.results.exports import every_eval_ever, hub, inspect_log, latex, table

    return {
        "markdown": leaderboard.write_markdown,
        "html": html.write_page,
        "csv": table.write_csv,
        "parquet": table.write_parquet,
        "latex": latex.write_latex,
        "every-eval-ever": every_eval_ever.write,
        "hub": hub.write,
        "inspect": inspect_log.write,
    }
