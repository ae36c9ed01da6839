"""Runs killed at seeded moments and continued, killed again or not, until they end.

Each run of the toy benchmark on 0, 1, 2 or 4 workers is killed at least once between its first
second and its end, a third of the kills in its last second: the controller or a worker by SIGKILL,
the controller by SIGINT, SIGTERM or SIGHUP, or by closing the terminal that it runs in. A third of
the sessions that continue a run are killed too. The log that is left must be that of a run that
nobody touched, row for row, and the run must have its end.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.drills.row import DrillRow
from benchmarks.drills.toys import SESSIONS, Toys, as_in_a_terminal, check_text

KILLS = 60
SIGNALS = {
    "SIGINT": signal.SIGINT,
    "SIGTERM": signal.SIGTERM,
    "SIGHUP": signal.SIGHUP,
    "SIGKILL": signal.SIGKILL,
}
"""What is sent to the controller."""
TERMINAL, WORKER = "closed terminal", "SIGKILL of a worker"
WAYS = (*SIGNALS, TERMINAL, WORKER)
BROKEN_OFF = ("SIGKILL", TERMINAL, "SIGHUP")
"""Ways that let workers find their controller gone; what they then print reaches nobody."""


def drill(share: float, seed: int, folder: Path) -> DrillRow:
    """Kill ``share`` of :data:`KILLS` sessions."""
    toys, dice, row = Toys(folder), random.Random(seed), DrillRow("kills")
    number = 0
    while row.tried < max(1, round(KILLS * share)):
        _round(toys, f"r{number}", dice, row)
        number += 1
    return row


def _round(toys: Toys, run: str, dice: random.Random, row: DrillRow) -> None:
    """One run, killed at least once, continued until it has everything."""
    status = -1
    for session in range(SESSIONS):
        how = "--resume" if toys.folder_of(run).exists() else "--run"
        args = (how, run, f"-n{dice.choice((0, 1, 2, 4))}")
        killed = session == 0 or dice.random() < 1 / 3
        way = dice.choice(WAYS) if killed else ""
        process = _in_terminal(toys, args, dice, row) if way == TERMINAL else toys.start(*args)
        if killed and way != TERMINAL:
            kill(process, way, _moment(toys, dice), dice, row)
        status = toys.wait(process, row)
        if way not in BROKEN_OFF:
            check_text(toys.output(process), row)
        row.notes["sessions"] += 1
        if status == 0:
            break
    toys.check(run, status, row)


def _moment(toys: Toys, dice: random.Random) -> float:
    """Return seconds until a kill, a third of them as the log is closed and the board written."""
    if dice.random() < 1 / 3:
        return max(0.1, toys.duration - dice.random())
    return dice.uniform(0.2, 1.0) * toys.duration


def kill(
    process: subprocess.Popen[bytes], way: str, after: float, dice: random.Random, row: DrillRow
) -> None:
    """End a session, or one of its workers, after some seconds."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(after)
        row.notes["after the end"] += 1
        return
    workers = _children(process.pid)
    if way == WORKER and not workers:
        way = "SIGKILL"
    if way == WORKER:
        with suppress(ProcessLookupError):
            os.kill(dice.choice(workers), signal.SIGKILL)
    else:
        process.send_signal(SIGNALS[way])
    row.tried += 1
    row.notes[way] += 1


def _in_terminal(
    toys: Toys, args: tuple[str, ...], dice: random.Random, row: DrillRow
) -> subprocess.Popen[bytes]:
    """Run a session in a terminal of its own, and close that at a moment."""
    ours, theirs = os.openpty()

    def prepare() -> None:
        as_in_a_terminal()
        os.setsid()
        for stream in (0, 1, 2):
            os.dup2(theirs, stream)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = toys.start(*args, prepare=prepare)
    os.close(theirs)
    reader = threading.Thread(target=_drain, args=(ours, process, _moment(toys, dice)))
    reader.start()
    reader.join()
    row.notes[TERMINAL if process.poll() is None else "after the end"] += 1
    row.tried += process.returncode is None
    os.close(ours)  # the kernel sends SIGHUP, and writes to the terminal fail from now on
    return process


def _drain(terminal: int, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Read what a session writes, as a terminal does, for some seconds or until it ends."""
    os.set_blocking(terminal, False)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and process.poll() is None:
        with suppress(OSError):
            os.read(terminal, 1 << 16)
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    """Return the workers of a controller (Linux; elsewhere none is known)."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]
