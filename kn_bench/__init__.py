"""Does an edit change what a language model knows? A pytest benchmark of model editing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kn_bench.editing.registry import edit_method

__version__ = "0.1.0"
__all__ = ["edit_method"]


def __getattr__(name: str) -> Any:
    """``edit_method`` on first use: importing kn_bench by itself imports nothing heavy."""
    if name == "edit_method":
        from kn_bench.editing.registry import edit_method

        return edit_method
    raise AttributeError(f"module 'kn_bench' has no attribute {name!r}")
