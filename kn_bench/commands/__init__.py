"""The sub-commands of ``kn-bench``: one module with a typer ``app`` for each."""
