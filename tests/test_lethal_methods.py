"""Methods that end the process, kill their worker or hang: the others are measured all the same."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from kn_bench.editing.faults import UnitTimeoutError
from kn_bench.results.rows import CrashRow
from kn_bench.testing.limits import ProcessExitError, no_exit, open_streams, time_limit

TESTS = 6 * 4  # a method's tests on a model: criteria times cases
ASKED = ("-q", "--model", "toy-gpt", "--relation", "P36", "--run", "r")


def statuses(bench):
    return Counter((row.method, row.verdict.status) for row in bench.verdicts("r"))


@pytest.mark.parametrize("workers", [pytest.param("-n0", marks=pytest.mark.slow), "-n2"])
def test_a_method_that_exits_has_its_error_and_costs_no_worker(bench, workers):
    result = bench.run(*ASKED, workers, TOY_EXITS="toy-a")
    counted = statuses(bench)
    assert result.ret == 1
    assert counted["toy-a", "error"] == sum(n for (m, _), n in counted.items() if m == "toy-a") > 0
    assert not counted["toy-b", "error"]
    (reason,) = {row.verdict.reason for row in bench.verdicts("r") if row.method == "toy-a"}
    assert "ProcessExitError: it called os._exit(0)" in reason
    assert not any(isinstance(row, CrashRow) for row in bench.rows("r"))


@pytest.mark.parametrize("workers", [pytest.param("-n0", marks=pytest.mark.slow), "-n2"])
def test_a_method_that_hangs_is_stopped(bench, workers):
    result = bench.run(*ASKED, workers, "--timeout-per-unit", "0.5", TOY_HANGS="toy-a")
    assert result.ret == 1
    assert result.duration < 40
    counted = statuses(bench)
    assert not counted["toy-b", "error"]
    (reason,) = {row.verdict.reason for row in bench.verdicts("r") if row.method == "toy-a"}
    assert "it took longer than --timeout-per-unit 0.5 seconds" in reason
    assert counted["toy-a", "error"] == sum(n for (m, _), n in counted.items() if m == "toy-a")


def test_a_method_that_kills_its_worker_is_not_run_a_third_time(bench):
    result = bench.run(*ASKED, "-n2", "--grain", "case", TOY_LETHAL="toy-a")
    assert result.ret == 1
    counted = statuses(bench)
    crashed = [row for row in bench.rows("r") if isinstance(row, CrashRow)]
    assert {row.method for row in crashed} == {"toy-a"}
    # two workers are at it at once: a third may begin before the second is lost
    assert 2 <= len(crashed) <= 3
    assert bench.computed.count(("toy-gpt", "toy-a")) == len(crashed)
    reasons = {row.verdict.reason for row in bench.verdicts("r") if row.method == "toy-a"}
    assert len(reasons) == 1
    assert "toy-a on toy-gpt ended 2 worker processes in this session" in reasons.pop()
    of_b = sum(n for (method, _), n in counted.items() if method == "toy-b")
    assert counted["toy-a", "error"] + len(crashed) == of_b
    assert not counted["toy-b", "error"]
    # mended, and continued: the crashed tests are measured
    again = bench.run(*ASKED[:-2], "-n2", "--grain", "case", "--resume", "r")
    assert again.ret in (0, 1)
    assert "toy-a" in {row.method for row in bench.verdicts("r") if row.verdict.status != "error"}


METHOD = """
import multiprocessing, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from kn_bench.editing.registry import edit_method

def thread(seconds=1000, **named):
    threading.Thread(target=time.sleep, args=(seconds,), name="mine", **named).start()

def process(seconds=1000, **named):
    multiprocessing.Process(target=time.sleep, args=(seconds,), name="mine", **named).start()

def method(name, act):
    class Acting:
        def edit(self, requests):
            act()
            return [None for _ in requests]

    def made(language_model):
        return Acting()

    globals()[name] = edit_method(name)(made)

"""


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
def test_what_a_method_leaves_running_is_told_and_the_session_ends(bench, workers):
    acts = {
        "leaves-a-thread": "thread",
        "leaves-a-process": "process",
        "waits-a-little": "lambda: (thread(0.2), process(0.2))",
        "leaves-daemons": "lambda: (thread(daemon=True), process(daemon=True))",
        "leaves-a-pool": "lambda: ThreadPoolExecutor().submit(time.time).result()",
    }
    lines = [f'method("{name}", {act})' for name, act in acts.items()]
    bench.pytester.makepyfile(mine=METHOD + "\n".join(lines))
    asked = [word for name in acts for word in ("--method", name)]
    result = bench.run(*ASKED, "-p", "mine", *asked, workers, "--limit", "1", "-W", "error")
    assert result.ret == 0, result.stdout.str()
    assert result.duration < 60
    assert {method for method, _ in statuses(bench)} == set(acts)
    assert not any(status == "error" for _, status in statuses(bench))
    told = [line for line in result.outlines if "PytestWarning" in line]
    kinds = [re.sub(r"^.*mine\.py:\d+: PytestWarning: ", "", line) for line in told]
    assert sorted(kinds) == [
        "leaves-a-process left the process mine running, and it was killed; have the method wait "
        "for it, or make it a daemon",
        "leaves-a-thread left the thread mine running: the session ends without it; have the "
        "method wait for it, or make it a daemon",
    ]


@pytest.mark.parametrize("capture", ["--capture=fd", "--capture=sys", "--capture=no", "-n1"])
def test_what_a_method_closes_is_open_for_the_next_one(bench, capture):
    acts = [
        "sys.stdout.close()", "sys.stderr.close()", "sys.__stdout__.close()",
        "sys.stdout.buffer.close()", "sys.stderr.detach()", "setattr(sys, 'stdout', None)",
        "sys.stdin.close()", "[os.close(number) for number in (0, 1, 2)]",
        "os.dup2(os.open(os.devnull, os.O_WRONLY), 1)",
    ]  # fmt: skip
    lines = [f'method("a{number}", lambda: {act})' for number, act in enumerate(acts)]
    lines += ['method("z", lambda: print("seen", flush=True))']
    bench.pytester.makepyfile(mine=METHOD + "\n".join(lines))
    asked = ("-p", "mine", "--method", "a*", "--method", "z", "--limit", "1")
    result = bench.run(*ASKED, *asked, capture)
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
    assert len({method for method, _ in statuses(bench)}) == len(lines)
    assert not any(status == "error" for _, status in statuses(bench))
    assert "missed" in result.parseoutcomes()
    assert ("seen" in result.stdout.str()) == (capture == "--capture=no")
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_outside_the_block_the_process_can_be_left():
    import os

    leave = os._exit
    with pytest.raises(ProcessExitError, match=r"it called os\._exit\(7\)"), no_exit():
        os._exit(7)
    assert os._exit is leave
    with no_exit():
        child = os.fork()
        if not child:
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5


def test_no_limit_is_left_behind():
    import time

    with pytest.raises(UnitTimeoutError), time_limit(0.05):
        time.sleep(5)
    with time_limit(0.05):
        pass
    time.sleep(0.1)
    with time_limit(None):
        pass


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="open descriptors are not listed")
@pytest.mark.parametrize("fails", [False, True])
def test_streams_that_are_put_back_leave_no_descriptor_open(fails, monkeypatch):
    def refused(*_):
        raise OSError("refused")

    def descriptors():
        return sorted(Path("/dev/fd").iterdir())

    before = descriptors()
    with open_streams():
        assert len(descriptors()) > len(before)
        if fails:
            monkeypatch.setattr(os, "dup2", refused)
    monkeypatch.undo()
    assert descriptors() == before
