"""What a long run shows: tasks told by files, a forecast from finished units, a line drawn."""

import io
import json
from types import SimpleNamespace

import pytest

from kn_bench.localise.attribution import attribute
from kn_bench.model.batching import Batcher
from kn_bench.model.progress import STEP, Bars, Silent, meter, stepwise
from kn_bench.testing import devices, progress
from kn_bench.testing.devices import workers_for
from kn_bench.testing.node_ids import NodeId
from kn_bench.testing.outcomes import SECONDS
from kn_bench.testing.progress import Display, FileProgress, Forecast, State, clock, states

MEANINGS = {
    f"{criterion}-{method}-{label}": NodeId(criterion, method, "m", label)
    for criterion in ("reliability", "locality")
    for method in ("rome", "kn")
    for label in ("a", "b", "c")
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Recording:
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def task(self, what, total=None):
        told = [what, total, 0.0]
        self.told.append(told)

        class Open:
            def __enter__(self):
                def advance(part):
                    told[2] += part

                return advance

            def __exit__(self, *_):
                return None

        return Open()


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(progress, "WRITE_EVERY", 0.0)


def test_a_worker_leaves_what_it_does_and_the_controller_reads_it(tmp_path, always):
    worker = FileProgress(progress.progress_file(tmp_path, "gw0"))
    idle = FileProgress(progress.progress_file(tmp_path, "gw1"))
    with worker.unit("rome on m, 2 cases"):
        with worker.task("editing", 20) as outer:
            outer(3)
            with worker.task("second moment C", 100) as advance:
                advance(40)
                advance(2)
                assert states(tmp_path) == [
                    State("rome on m, 2 cases: editing 3/20: second moment C", 42.0, 100)
                ]
            outer(1)
        assert states(tmp_path) == [State("rome on m, 2 cases: editing", 4.0, 20)]
    with idle.unit(""):
        assert states(tmp_path) == []
    (tmp_path / "progress-gw2.json").write_text('["half a')
    assert states(tmp_path) == []


def test_a_file_that_cannot_be_written_stops_nobody(tmp_path, always):
    (tmp_path / "file").write_text("")
    worker = FileProgress(tmp_path / "file" / "progress-gw0.json")
    with worker.unit("rome"), worker.task("editing", 3) as advance:
        advance(3)
    with FileProgress(None).task("editing") as advance:
        advance(1)


def test_files_are_written_twice_a_second_at_most(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    worker = FileProgress(tmp_path / "progress-gw0.json")
    with worker.unit("rome"), worker.task("editing", 1000) as advance:
        for _ in range(100):
            advance(1)
            now[0] += 0.01
    assert worker._written <= now[0]
    written = []
    monkeypatch.setattr(worker, "_file", SimpleNamespace(
        with_suffix=lambda _: SimpleNamespace(
            write_text=lambda text, encoding: written.append(json.loads(text)),
            replace=lambda _: None), parent=tmp_path))  # fmt: skip
    with worker.task("editing", 1000) as advance:
        for _ in range(200):
            now[0] += 0.01
            advance(1)
    assert len(written) == pytest.approx(4, abs=1)


def test_the_time_left_comes_from_the_units_that_are_finished():
    forecast = Forecast(MEANINGS, workers=2)
    assert (forecast.done, forecast.total, forecast.left()) == (0, 6, None)
    forecast.heard(MEANINGS["reliability-rome-a"], 6.0)  # a unit's seconds come with its first test
    for label in ("b", "c"):
        forecast.heard(MEANINGS[f"reliability-rome-{label}"], None)
    forecast.heard(MEANINGS["locality-rome-a"], None)
    assert (forecast.done, forecast.per_case) == (3, {("rome", "m"): 2.0})
    assert forecast.left() is None  # kn was never measured
    forecast.heard(MEANINGS["reliability-kn-a"], 20.0)
    assert forecast.left() == 2 * 20.0  # two cases of one unit: one worker computes it alone
    known = {("rome", "m"): 2.0, ("kn", "m"): 20.0}
    assert Forecast(MEANINGS, 2, known, labels_per_unit=1).left() == 66.0 / 2
    assert Forecast(MEANINGS, 2, known).left() == 60.0
    earlier = Forecast(MEANINGS, 1, known)
    assert earlier.left() == 66.0


def test_a_test_of_a_relation_or_a_sequence_is_about_all_of_its_cases():
    """Under ``--grain unit`` and in sequences: an hour's run was taken for a few edits."""
    tests = [
        NodeId(criterion, "rome", "m", "all", f"sequence_5.{number}.{asked}")
        for criterion in ("reliability", "locality")
        for number in (0, 1)
        for asked in ("immediate", "retained")
    ]
    forecast = Forecast(dict(enumerate(tests)), 1, {("rome", "m"): 2.0}, cases_of=lambda _: 5)  # type: ignore[arg-type]
    assert (forecast.total, forecast.counts, forecast.left()) == (10, {("rome", "m"): 10}, 20.0)
    for test, seconds in zip(tests, (15.0, None, None, None), strict=False):
        forecast.heard(test, seconds)
    assert (forecast.done, forecast.per_case, forecast.left()) == (10, {("rome", "m"): 1.5}, 0.0)


def test_on_a_terminal_the_line_is_drawn_beside_pytests_letters_and_wiped(tmp_path, always):
    terminal = Terminal()
    display = Display(tmp_path, Forecast(MEANINGS, 1), MEANINGS, terminal)
    worker = FileProgress(tmp_path / "progress-gw0.json")
    with worker.unit("kn on m"), worker.task("locating, prompt", 8) as advance:
        advance(3)
        display._draw()
        drawn = terminal.getvalue()
        assert drawn.endswith("0/6 edits | 0:00 so far | kn on m: locating, prompt 3/8")
        display.pytest_runtest_logstart()
        assert terminal.getvalue() == drawn + "\b" * len(drawn) + "\x1b[K"
        wiped = terminal.getvalue()
        display._draw()  # pytest is about to write
        assert terminal.getvalue() == wiped


def test_without_a_terminal_it_is_a_line(tmp_path):
    log = io.StringIO()
    display = Display(tmp_path, Forecast(MEANINGS, 1), MEANINGS, log)
    report = SimpleNamespace(
        nodeid="reliability-rome-a", when="setup",
        user_properties=[(SECONDS, json.dumps({"editing": 3.0, "loading": 1.0}))],
    )  # fmt: skip
    display.pytest_runtest_logreport(report)  # type: ignore[arg-type]
    assert display._forecast.per_case == {("rome", "m"): 4.0}
    display._write_line()
    assert log.getvalue() == "\nkn_bench: 1/6 edits | 0:00 so far\n"


def test_the_time_left_falls_while_a_unit_is_computed(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    forecast = Forecast(MEANINGS, 1, {("rome", "m"): 10.0, ("kn", "m"): 20.0})
    display = Display(tmp_path, forecast, MEANINGS, io.StringIO())
    shown = []
    for step in (0, 5, 30, 100):
        now[0] += step
        shown.append(display.line(40))
    assert [line.split(" | ")[1] for line in shown] == [
        "1:30 left", "1:25 left", "0:55 left", "0:00 left"
    ]  # fmt: skip
    forecast.heard(MEANINGS["reliability-rome-a"], 30.0)  # rome takes 30 s a case, 2 are left
    assert display.line(40).startswith("1/6 edits | 2:00 left")


def test_batches_report_what_they_are_part_of():
    told = Recording()
    batcher = Batcher(64)
    batcher.progress = told
    batcher.run(lambda batch: batch, list(range(10)), item_bytes=lambda _: 10, what="asking")
    batcher.run(lambda batch: batch, [1], item_bytes=lambda _: 10)
    assert told.told == [["asking", 10, 10.0]]


def test_locating_reports_to_the_models_progress():
    from kn_bench.cases.case import Cloze, Query
    from kn_bench.measure.encoding import encode_query
    from tests.tiny_models import tiny_model

    lm = tiny_model("gpt2")
    told = Recording()
    lm.progress = told
    try:
        query = encode_query(Query(Cloze("w5 w6", "."), "w7"), lm.tokens, "fact")
        assert query is not None
        attribute(lm, [query])
    finally:
        lm.progress = Silent()
    assert ["locating, prompt", 1, 1.0] in told.told


def test_bars_are_drawn_on_terminals_only(monkeypatch):
    terminal, log = Terminal(), io.StringIO()
    for file in (terminal, log):
        with Bars(file).task("second moment C", 10) as advance:
            advance(5)
    assert "second moment C" in terminal.getvalue()
    assert log.getvalue() == ""
    monkeypatch.setattr("kn_bench.model.progress.LINE_EVERY", 0.0)
    with Bars(log).task("second moment C", 10) as advance:
        advance(5)
    assert log.getvalue().startswith("second moment C:  50%|")
    assert meter("x", 3, None, 10.0).startswith("x: 3it")


def test_times_are_written_as_clocks_show_them():
    assert [clock(s) for s in (0, 61, 3599.6, 3661)] == ["0:00", "1:01", "1:00:00", "1:01:01"]


def test_workers_are_chosen_from_cores_and_memory(monkeypatch):
    monkeypatch.setattr("kn_bench.testing.devices.cores", lambda: 8)
    assert workers_for(0, memory=64 << 30) == 8
    assert workers_for(540 << 20, memory=4 << 30) == 4
    assert workers_for(28 << 30, memory=40 << 30) == 1


@pytest.mark.parametrize(
    ("workers", "cores", "allowed", "said"),
    [
        (2, 2, "", "2 workers with 1 thread each"),
        (2, 8, "", "2 workers with 4 threads each"),
        (4, 2, "", "4 workers with 1 thread each"),
        (1, 8, "", "1 process with 8 threads; "),
        (1, 1, "", "1 process with 1 thread; "),
        (1, 8, "1", "1 process with 1 thread (OMP_NUM_THREADS); "),
        (1, 8, "6", "1 process with at most 6 threads (OMP_NUM_THREADS); "),
        (2, 8, "1", "2 workers with 1 thread (OMP_NUM_THREADS) each"),
        (2, 8, "3,1", "2 workers with at most 3 threads (OMP_NUM_THREADS) each"),
        (2, 8, "many", "2 workers with 4 threads each"),
        (2, 8, "0", "2 workers with 4 threads each"),
    ],
)
def test_the_header_states_workers_and_threads(monkeypatch, workers, cores, allowed, said):
    monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    monkeypatch.setattr(devices, "cores", lambda: cores)
    hint = "-n auto starts as many as cores and memory allow" if workers == 1 else ""
    assert devices.sharing(workers) == said + hint


def test_the_time_left_is_never_less_than_a_task_takes_at_its_own_pace(
    tmp_path, monkeypatch, always
):
    """A sequence of an hour that was estimated at a quarter of it said 0:00 left for the rest."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    forecast = Forecast(MEANINGS, 1, {("rome", "m"): 10.0, ("kn", "m"): 0.0})
    display = Display(tmp_path, forecast, MEANINGS, io.StringIO())

    def left():
        return display.line(40).split(" | ")[1]

    worker = FileProgress(tmp_path / "progress-gw0.json")
    assert left() == "0:30 left"
    with worker.unit("rome"), worker.task("step", 10) as advance:
        now[0] += 5
        advance(1)
        assert left() == "0:25 left"  # 45 s by its share, too early to tell
        now[0] += 15
        advance(1)
        assert left() == "1:20 left"  # 20 s for a fifth of it
        with worker.task("editing", 2) as inner:
            inner(1)
            assert left() == "1:20 left"
        now[0] += 60
        advance(8)
        assert left() == "0:00 left"


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_the_edits_of_a_sequence_are_counted_step_by_step(tmp_path, always, steps):
    """A sequence of an hour had none until its end."""
    at = [NodeId("reliability", "rome", "m", str(i), "sequence_10.0.retained") for i in range(10)]
    meanings = {node_id.label: node_id for node_id in at}
    display = Display(tmp_path, Forecast(meanings, 1), meanings, io.StringIO())

    def made():
        return display.line(200).split(" edits")[0]

    worker = FileProgress(tmp_path / "progress-gw0.json")
    with worker.unit("rome on m, 10 cases", 10):
        seen = []
        for _ in stepwise(worker, STEP, range(steps)):
            seen.append(made())
            with worker.task("editing, fact", 4) as advance:
                advance(3)
                assert made() == seen[-1]
        assert seen == [f"{10 // steps * step}/10" for step in range(steps)]
        assert made() == "10/10"
        for _ in stepwise(worker, STEP, range(steps)):  # the edits of equal size
            assert made() == "10/10"
    report = SimpleNamespace(nodeid="0", user_properties=[(SECONDS, "{}")], when="call")
    display.pytest_runtest_logreport(report)  # type: ignore[arg-type]
    assert made() == "10/10"
    with worker.unit("ft on m, 10 cases", 10), worker.task("editing, fact", 10) as advance:
        advance(4)
        assert states(tmp_path)[0].edits == 0
