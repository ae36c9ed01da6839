"""``kn-bench``: the command line for runs and models, outside pytest.

Each command is a module with a typer app of its own, imported only when it is called: help needs
neither torch nor pandas.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib import import_module
from types import FrameType
from typing import NamedTuple

import typer

from kn_bench.results.files import StoreError
from kn_bench.testing.processes import ending_signals


class Entry(NamedTuple):
    """The module of a command, and its line in the list of commands."""

    module: str
    help: str


COMMANDS = {
    "leaderboard": Entry(
        "kn_bench.commands.leaderboard", "Rebuild the leaderboard from the logs of runs."
    ),
    "view": Entry("kn_bench.commands.view", "Serve the board's page with every answer."),
    "compare": Entry("kn_bench.commands.compare", "Compare two runs on the cases they share."),
    "launch": Entry("kn_bench.commands.launch", "Measure a run in shards on a Slurm queue."),
    "merge": Entry("kn_bench.commands.merge", "Join the shards of a run into one run."),
    "data": Entry("kn_bench.commands.data", "List sources of cases; check a file of your own."),
    "edit": Entry("kn_bench.commands.edit", "Edit a model and write a checkpoint or an adapter."),
    "evaluate": Entry(
        "kn_bench.commands.evaluate", "Measure an edited checkpoint or adapter against its base."
    ),
    "blimp": Entry(
        "kn_bench.commands.blimp", "Measure a model's accuracy on BLiMP, without edits."
    ),
    "localise": Entry(
        "kn_bench.commands.localise", "Locate knowledge neurons and measure localisation."
    ),
    "modifiers": Entry(
        "kn_bench.commands.modifiers", "Suppress a number neuron and measure 24 modifiers."
    ),
    "trace": Entry("kn_bench.commands.trace", "Trace which hidden states carry an answer."),
    "control": Entry("kn_bench.commands.control", "Run one control or other section of the study."),
    "tune": Entry("kn_bench.commands.tune", "Sweep a method's settings on held-out cases."),
    "study": Entry("kn_bench.commands.study", "Run the whole study and write an HTML report."),
}
"""Name of a command -> its module, which has a typer app called ``app``."""

INTERRUPTED = 130
"""The exit status of a command that Ctrl-C ends: typer's."""
LEFT = {
    "edit": "if it said what it wrote, that is whole; otherwise run it again",
    "study": "the same command without --again goes on after the finished sections",
    "tune": "the preset, where one was written, holds the points measured so far",
}
"""What an interrupted command leaves behind."""

AS_THEY_COME = {
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "ignore_unknown_options": True,
}
group = typer.Typer(no_args_is_help=True, add_completion=False)


@group.callback()
def _about() -> None:
    """Work with runs of `pytest suites/` and study how a model stores what it knows."""


def _handing_on(name: str) -> Callable[[typer.Context], None]:
    """Return a command that passes its arguments, ``--help`` too, to the app of its module."""

    def hand_on(ctx: typer.Context) -> None:
        try:
            import_module(COMMANDS[name].module).app(ctx.args, prog_name=f"kn-bench {name}")
        except SystemExit as end:
            if end.code == INTERRUPTED:
                left = LEFT.get(name, "run it again")
                typer.echo(f"kn-bench {name}: interrupted; {left}", err=True)
            raise

    return hand_on


for _name, _entry in COMMANDS.items():
    group.command(_name, help=_entry.help, add_help_option=False, context_settings=AS_THEY_COME)(
        _handing_on(_name)
    )


def app() -> None:
    """Run ``kn-bench``; report bad input in one sentence, with exit status 2.

    SIGTERM and SIGHUP end it as Ctrl-C does, so that nothing is left half written, but with an exit
    status of their own.
    """
    ended: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        ended.append(number)
        signal.signal(number, signal.SIG_DFL)  # the second one ends it at once
        raise KeyboardInterrupt

    for number in ending_signals():
        signal.signal(number, end)
    try:
        group()
    except (StoreError, ValueError) as error:
        typer.echo(f"kn-bench: {error}", err=True)
        sys.exit(2)
    except SystemExit as status:
        sys.exit(128 + ended[0] if ended and status.code == INTERRUPTED else status.code)
