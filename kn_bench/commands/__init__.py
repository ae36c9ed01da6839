"""The sub-commands of ``kn-bench``, a module each with a typer ``app``."""
