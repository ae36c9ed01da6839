"""Other tests and plug-ins: what a session does without where there are none, and must not hide."""

from __future__ import annotations

import sys

import pytest


def do_without(config: pytest.Config) -> None:
    """Leave out what only other tests than ours need; called where there are none."""
    logs = config.pluginmanager.has_plugin("logging-plugin")  # it alone knows the settings below
    asked = any(config.getoption(name, None) for name in ("log_level", "log_file", "log_cli_level"))
    # at every phase of every test the log capture visits all loggers that do not propagate, and
    # torch has sixty of them: 1.5 ms a test, more than all else that a test costs
    if logs and not (asked or config.getini("log_cli") or config.getini("log_file")):
        config.pluginmanager.unregister(name="logging-plugin")
    # hypothesis' plug-in imports the whole library for its summary: a second in every process
    if "hypothesis" not in sys.modules:
        config.pluginmanager.unregister(name="hypothesispytest")


class Unrecorded:
    """Stops the session at a result that nobody writes down: a green test must not hide it."""

    @pytest.hookimpl(trylast=True)  # after the recorder, which takes the rows off the report
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.user_properties:  # as of another project's tests
            return
        from kn_bench.testing.outcomes import ROWS

        if any(name == ROWS for name, _ in report.user_properties):
            pytest.exit(
                f"{report.nodeid} was measured by a worker that did not say so when it collected "
                "its tests: its result cannot be recorded; run with -n on this machine",
                returncode=3,
            )
