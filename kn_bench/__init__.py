"""Does an edit change what a language model knows? A pytest benchmark of model editing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kn_bench.testing.registry import edit_method

__version__ = "0.1.0"
__all__ = ["edit_method"]

# In a checkout `suites/` and `edits/` lie beside this package, in a wheel inside it: extending the
# path gives them the same names, kn_bench.suites and kn_bench.edits, in both.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "suites").is_dir():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    """``edit_method`` on first use: importing kn_bench by itself imports no pytest."""
    if name == "edit_method":
        from kn_bench.testing.registry import edit_method

        return edit_method
    raise AttributeError(f"module 'kn_bench' has no attribute {name!r}")
