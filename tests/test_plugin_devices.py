"""Devices are lent and come back; cores are shared."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kn_bench.testing import devices
from kn_bench.testing.devices import DevicePool
from kn_bench.testing.options import Options
from tests.shares import mostly_slow


def test_a_replacement_worker_gets_the_device_that_is_free():
    pool = DevicePool(["cuda:0", "cuda:1"])
    assert [pool.lease("gw0"), pool.lease("gw1")] == ["cuda:0", "cuda:1"]
    pool.release("gw0")
    assert pool.lease("gw2") == "cuda:0"  # by its number it would have been cuda:0 or cuda:1
    pool.release("gw1")
    assert pool.lease("gw3") == "cuda:1"


def test_more_workers_than_devices_share_evenly():
    pool = DevicePool(["cuda:0", "cuda:1"])
    leased = [pool.lease(f"gw{i}") for i in range(4)]
    assert sorted(leased) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert pool.lease("gw0") == leased[0]


def test_no_devices():
    with pytest.raises(ValueError, match="at least one device"):
        DevicePool([])


def test_devices_that_are_not_there(monkeypatch):
    assert devices.expand(["cpu", "cpu"]) == ["cpu"]
    assert devices.expand(["auto"]) == ["auto"]
    with pytest.raises(ValueError, match=r"^--device gpu: expected cpu, cuda, cuda:N or auto$"):
        devices.expand(["gpu"])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert devices.expand(["cuda"]) == ["cuda:0", "cuda:1"]
    assert devices.expand(["cuda:1"]) == ["cuda:1"]
    with pytest.raises(ValueError, match=r"^--device cuda:2: expected one of the 2 GPUs"):
        devices.expand(["cuda:2"])


@pytest.mark.parametrize(
    ("workers", "cores", "each"), [(1, 8, 8), (4, 8, 2), (3, 8, 2), (16, 8, 1)]
)
def test_cores_are_shared_among_the_workers(monkeypatch, workers, cores, each):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    assert devices.threads(workers) == each


@pytest.mark.parametrize(
    ("models", "each"),
    [((), "1"), (("tiny-bert",), "1"), (("tiny-bert", "gpt2"), "devices.threads(1)")],
)
def test_settling_before_torch_is_imported(models, each):
    code = (
        f"import os, sys; from kn_bench.testing import devices; devices.settle(1, {models!r});"
        "assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'; import torch;"
        f"assert torch.get_num_threads() == {each}"
    )
    environment = {"PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


ALLOWED = ["", "1", " 1 ", "1,2", "1,", "many", "0", "-1", "1.5"]


@pytest.mark.parametrize("allowed", mostly_slow(ALLOWED, fast=["", " 1 ", "1,2", "many"]))
def test_the_header_states_the_threads_that_a_process_computes_with(allowed):
    """It stated the cores where OMP_NUM_THREADS was set, and no number was set for a wrong one."""
    code = (
        "import re; from kn_bench.testing import devices; devices.cores = lambda: 7;"
        "devices.settle(1, ['gpt2']); import torch; stated = devices.sharing(1);"
        "assert re.findall(r'with (\\d+) thread', stated) == [str(torch.get_num_threads())], stated"
    )
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": allowed}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    ("given", "workers"),
    [
        (("-n2",), 2),
        (("--tx", "2*popen", "--dist", "load"), 2),
        (("--tx", "popen", "--tx", "popen"), 1),  # pytest runs the tests itself without --dist
    ],
)
def test_the_workers_that_are_counted_are_those_that_xdist_starts(
    pytester, monkeypatch, given, workers
):
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)  # of the session around it
    pytester.makeconftest(
        "from kn_bench.testing.plugin import workers_of\n"
        "def pytest_report_header(config):\n"
        "    return f'counted {workers_of(config)}'\n"
    )
    pytester.makepyfile(
        "import os\n"
        "def test_count():\n"
        f"    assert os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1') == '{workers}'\n"
    )
    result = pytester.runpytest_subprocess("-p", "xdist", *given)
    result.stdout.fnmatch_lines([f"counted {workers}", "*1 passed*"])


@pytest.mark.parametrize(
    ("models", "given", "workers"),
    [((), "cpu", 2), (("tiny-bert",), "cpu", 2), (("a/folder",), "cpu", 4), ((), "cuda:0", 4)],
)
def test_small_models_have_no_more_workers_than_cores(monkeypatch, models, given, workers):
    monkeypatch.setattr(devices, "cores", lambda: 2)
    options = Options(models=models, devices=(given,))
    assert devices.useful(4, options) == workers
    assert devices.useful(1, options) == 1


def test_workers_beyond_the_cores_are_not_started(pytester):
    asked, cores = devices.cores() + 1, devices.cores()
    result = pytester.runpytest_subprocess(
        "--pyargs", "kn_bench.suites", "--co", f"-n{asked}", "--model", "tiny-gpt2",
        "--method", "none", "--limit", "1", "--relation", "P36",
    )  # fmt: skip
    result.stdout.fnmatch_lines(
        [f"kn_bench: {cores} workers rather than {asked}, one for each core of this machine"]
    )
    assert result.ret == 0
