"""A worker that is killed as it starts ends the session with one sentence, not a traceback."""

from __future__ import annotations

import signal

import pytest

from kn_bench.testing.processes import raised_within

KILLED = """
import pytest
import execnet.gateway_bootstrap as bootstrap

def gone(io, spec):
    io.popen.kill()
    s = b""  # what is read of a process that is not there any more
    assert s == b"1", repr(s)

gone.__globals__["__name__"] = "execnet.gateway_bootstrap"
bootstrap.bootstrap_import = gone
"""


def test_a_worker_killed_as_it_starts_is_one_sentence(bench):
    bench.pytester.makepyfile(killed=KILLED)
    result = bench.run("-n2", "--limit", "1", "--run", "mine", "-p", "killed")
    assert result.ret == 3
    text = result.stdout.str() + result.stderr.str()
    assert "a worker ended as it was started; start the run again, or go on with it" in text
    assert "INTERNALERROR" not in text
    assert "Traceback" not in text


STOPPED = """
import os, signal
import execnet.gateway_bootstrap as bootstrap

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored

def stopped(io, spec):
    os.kill(os.getpid(), signal.SIGNAL)

bootstrap.bootstrap_import = stopped
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_controller_stopped_as_it_starts_workers_leaves_no_traceback(bench, name):
    """The worker would read nothing, or write to nobody."""
    bench.pytester.makepyfile(stopped=STOPPED.replace("SIGNAL", name))
    result = bench.run("-n2", "--limit", "1", "--run", "mine", "-p", "stopped")
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == (2 if name == "SIGINT" else -getattr(signal, name))
    assert "Traceback" not in text


def test_where_an_error_was_raised():
    with pytest.raises(ZeroDivisionError) as ours:
        1 / 0  # noqa: B018
    assert raised_within(ours.value, "tests")
    assert not raised_within(ours.value, "execnet")
