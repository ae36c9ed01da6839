"""``kn-bench``: what can be done with runs and models outside pytest.

Each command is a module of its own with a typer app, imported when it is called: asking for help
imports no torch and no pandas.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import typer

from kn_bench.results.files import StoreError


class Entry(NamedTuple):
    """Where a command lies, and the line that the list of commands has for it."""

    module: str
    help: str


COMMANDS = {
    "leaderboard": Entry("kn_bench.commands.leaderboard", "Rebuild the leaderboard from runs."),
    "compare": Entry("kn_bench.commands.compare", "Compare two runs, paired on the same cases."),
    "data": Entry("kn_bench.commands.data", "What cases there are: counts and hashes."),
    "blimp": Entry("kn_bench.commands.blimp", "BLiMP's own accuracy of a model, unedited."),
    "localise": Entry("kn_bench.commands.localise", "Locate knowledge neurons; how localised?"),
    "modifiers": Entry("kn_bench.commands.modifiers", "Silence a number neuron, watch 24 words."),
    "trace": Entry("kn_bench.commands.trace", "Causal tracing of facts and syntax."),
    "control": Entry("kn_bench.commands.control", "One of the controls of localisation."),
    "study": Entry("kn_bench.commands.study", "All of these into a folder with one page."),
}
"""Name -> its module, which has a typer app called ``app``."""

AS_THEY_COME = {
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "ignore_unknown_options": True,
}
group = typer.Typer(no_args_is_help=True, add_completion=False)


@group.callback()
def _about() -> None:
    """Benchmark of model editing: boards and comparisons of runs of `pytest suites/`."""


def _handing_on(name: str) -> Callable[[typer.Context], None]:
    """A command that hands its arguments, ``--help`` too, to the app of its module."""

    def hand_on(ctx: typer.Context) -> None:
        import_module(COMMANDS[name].module).app(ctx.args, prog_name=f"kn-bench {name}")

    return hand_on


for _name, _entry in COMMANDS.items():
    group.command(_name, help=_entry.help, add_help_option=False, context_settings=AS_THEY_COME)(
        _handing_on(_name)
    )


def app() -> None:
    """Run ``kn-bench``; what it cannot do is one sentence and exit status 2."""
    try:
        group()
    except (StoreError, ValueError) as error:
        typer.echo(f"kn-bench: {error}", err=True)
        sys.exit(2)
