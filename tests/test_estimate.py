"""The time a run takes, stated before it: from an earlier run like it, or from one case each."""

import json
import re
import shutil
import time
from types import SimpleNamespace
from typing import Any

import pytest

from kn_bench.cases import sources
from kn_bench.editing.edit import NoEdit, NotApplicable
from kn_bench.editing.registry import edit_method, marked_spec
from kn_bench.editing.settings import Choices
from kn_bench.measure.protocols import parse_protocol
from kn_bench.model import embedded
from kn_bench.model.progress import Silent
from kn_bench.testing import calibration, estimate, plan, showing
from kn_bench.testing.calibration import Rates, Stopwatch, calibrate
from kn_bench.testing.estimate import Estimate, Timings, kind_of_run
from kn_bench.testing.models import Models
from kn_bench.testing.node_ids import NodeId
from kn_bench.testing.options import Options
from kn_bench.testing.sequences import cases_of
from tests.tiny_models import tiny_model

TINY = {"tiny_gpt2": "tiny-gpt2"}
RATES = Rates({("rome", "m"): 6.0, ("kn-edit", "m"): 22.0}, 3.0, "one case each")


def test_the_estimate_is_the_work_of_all_edits_shared_among_the_workers():
    edits = {("rome", "m"): 40, ("kn-edit", "m"): 40}
    told = Estimate(RATES, edits, workers=2)
    assert told.seconds == 3 + (40 * 6 + 40 * 22) / 2
    assert told.sentence == (
        "about 9:23 for 80 edits by 2 workers, by one case each: kn-edit 7:20, rome 2:00, ..."
    )
    assert not told.unknown
    # two units of kn-edit: the second worker has nothing to do while the first has the last one
    few = Estimate(RATES, {("rome", "m"): 4, ("kn-edit", "m"): 40}, 4, {("kn-edit", "m"): 2})
    assert few.seconds == 3 + 20 * 22
    # what shares the located neurons stays on one worker, and the other one waits for it
    both, units = {("kn-edit", "m"): 4, ("rome", "m"): 4}, {("kn-edit", "m"): 1, ("rome", "m"): 1}
    assert Estimate(RATES, both, 2, units).seconds == 3 + 4 * 22
    together = {"kn-edit": "neurons", "rome": "neurons"}
    assert Estimate(RATES, both, 2, units, together).seconds == 3 + 4 * 22 + 4 * 6
    more = Estimate(RATES, {**edits, ("mine", "m"): 40}, workers=1)
    assert more.unknown == ["mine"]
    assert more.sentence.endswith("; without mine")
    assert " workers" not in more.sentence


def test_timings_of_a_run_are_found_by_the_next_one_of_its_kind(tmp_path):
    timings = Timings(tmp_path / "new" / "timings.json")
    assert timings.read("a") is None
    timings.remember("a", RATES, edits=100)
    timings_read = Timings(tmp_path / "new" / "timings.json").read("a")
    assert timings_read
    assert timings_read == RATES._replace(source="an earlier run like it")
    assert timings.read("b") is None
    timings.remember("a", RATES._replace(once=9.0), edits=24)  # few edits say less than many
    assert timings.read("a") == timings_read
    timings.remember("a", RATES._replace(once=9.0), edits=25)
    assert timings.read("a") == timings_read._replace(once=9.0)


def test_a_file_of_timings_does_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "KEPT", 3)
    timings = Timings(tmp_path / "timings.json")
    for kind in "abcd":
        timings.remember(kind, RATES, 1)
    assert timings.read("a") is None
    assert all(timings.read(kind) for kind in "bcd")


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '{"a": {"seconds": 3, "once": 1}}', "{"])
def test_timings_that_cannot_be_read_are_ignored_and_replaced(tmp_path, text):
    file = tmp_path / "timings.json"
    file.write_text(text)
    timings = Timings(file)
    assert timings.read("a") is None
    timings.remember("a", RATES, edits=1)
    timings_of_kind = timings.read("a")
    assert timings_of_kind
    assert timings_of_kind.seconds == RATES.seconds


def test_timings_that_cannot_be_written_stop_nobody(tmp_path):
    (tmp_path / "file").write_text("")
    Timings(tmp_path / "file" / "timings.json").remember("a", RATES, 1)


def test_runs_of_one_kind_have_the_same_model_methods_settings_and_workers():
    base = (Options(models=("m",)), {"m": "hash"}, ["rome", "none"], 2)

    def kind(
        options=base[0], fingerprints=base[1], methods=base[2], workers=base[3], selected=("", "")
    ):
        return kind_of_run(options, fingerprints, methods, workers, selected)

    assert kind() == kind(methods=["none", "rome"])
    assert kind() == kind(options=Options(models=("another name",), limit=3))
    others = [
        kind(fingerprints={"m": "other"}),
        kind(methods=["rome"]),
        kind(workers=4),
        kind(options=Options(models=("m",), dtype="bfloat16")),
        kind(options=Options(models=("m",), sets=("rome.layer=1",))),
        kind(options=Options(models=("m",), relations=("P36",))),
        kind(options=Options(models=("m",), cases=("mine.jsonl",))),
        kind(selected=("facts", "")),
        kind(selected=("", "facts")),
    ]
    assert len({kind(), *others}) == 10


def test_what_is_done_once_is_told_apart(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch(Silent())
    for what, seconds in (("loading", 3.0), ("second moment C", 40.0), ("locating, prompt", 7.0)):
        with watch.task(what) as advance:
            advance(1)
            now[0] += seconds
    assert (watch.once, watch.loading) == (43.0, 3.0)


def models(progress):
    return Models(Options(), "cpu", {}, progress=progress)


@edit_method("plain")
def plain(language_model):
    class Plain:
        def edit(self, requests):
            return [NoEdit() for _ in requests]

    return Plain()


@edit_method("slow")
def slow(language_model):
    class Slow:
        def edit(self, requests):
            time.sleep(sum(0.2 if r.task == "fact" else 0.6 for r in requests))
            return [NoEdit() for _ in requests]

    return Slow()


@edit_method("broken")
def broken(language_model):
    raise RuntimeError("no")


def test_a_calibration_times_edits_and_answers_and_leaves_out_what_fails(monkeypatch):
    monkeypatch.setattr(calibration, "embedded", type("None", (), {"NAMES": ()}))
    cases = [
        *sources.load("embedded", limit=3, relations=["P36"]).cases,
        *sources.load("embedded", limit=1, relations=["anaphor_number_agreement"]).cases,
    ]
    specs = [spec for method in (plain, broken, slow) if (spec := marked_spec(method))]
    rates = calibrate(TINY, cases, specs, models, Choices())
    assert set(rates.seconds) == {("plain", "tiny_gpt2"), ("slow", "tiny_gpt2")}
    # what changes nothing is not asked again, but as the first method it asks the unedited model
    assert rates.seconds["plain", "tiny_gpt2"] < 0.5 * rates.seconds["slow", "tiny_gpt2"]
    # a fact takes 0.2 s to edit and a pair 0.6: by their shares 0.3 s, and the asking
    assert 0.3 < rates.seconds["slow", "tiny_gpt2"] < 5
    assert 0 < rates.once < 60


together: list[Any] = []


def calibrated(monkeypatch, method, text):
    """Return the rates of a method that fills ``together``, on twenty facts under a protocol."""
    monkeypatch.setattr(calibration, "embedded", type("None", (), {"NAMES": ()}))
    cases = sources.load("embedded", limit=20, relations=["P36"]).cases
    together.clear()
    specs = [spec for spec in [marked_spec(method)] if spec]
    return calibrate(TINY, cases, specs, models, Choices(), protocol=parse_protocol(text))


@edit_method("stepwise")
def in_steps(language_model):
    class InSteps:
        def edit_together(self, requests):
            together.append(len(requests))
            time.sleep(0.5)
            return NoEdit()

    return InSteps()


@pytest.mark.parametrize(
    ("text", "sizes"), [("sequence:20", [1] * 4), ("sequence:20/5", [5]), ("batch:10", [10])]
)
def test_a_calibration_makes_steps_as_the_protocol_has_them(monkeypatch, text, sizes):
    """A hundred steps of one edit were stated at the cost of edits made sixteen at a time."""
    rates = calibrated(monkeypatch, in_steps, text)
    assert together == sizes
    assert rates.seconds["stepwise", "tiny_gpt2"] > 0.5 / sizes[0]


@edit_method("unequal")
def unequal(language_model):
    class Unequal:
        def edit_together(self, requests):
            together.append(len(requests))
            time.sleep(1.2 if len(together) == 3 else 0.1)
            return NoEdit()

    return Unequal()


def test_one_edit_of_a_sequence_does_not_stand_for_all(monkeypatch):
    """Neurons are located for each token of an answer: the first fact had one, others six."""
    rates = calibrated(monkeypatch, unequal, "sequence:20")
    assert rates.seconds["unequal", "tiny_gpt2"] > (3 * 0.1 + 1.2) / 4


searched: list[str] = []


def remembering(language_model):
    """Find something once for the model and its request, as methods of one family do."""

    class Remembering:
        def edit_together(self, requests):
            def find(keys):
                searched.extend(keys)
                return keys

            language_model.memo.get_many([("found", r.id) for r in requests], find)
            return NoEdit()

    return Remembering()


@edit_method("first_of_two")
def first_of_two(language_model):
    return remembering(language_model)


@edit_method("second_of_two")
def second_of_two(language_model):
    return remembering(language_model)


@pytest.mark.parametrize(("text", "times"), [("batch:2", 1), ("sequence:2", 2)])
def test_what_methods_share_counts_once_in_a_batch_and_for_each_in_a_sequence(
    monkeypatch, text, times
):
    """In a batch the second method finds what the first remembered; in a sequence each has its
    own model."""
    monkeypatch.setattr(calibration, "embedded", type("None", (), {"NAMES": ()}))
    cases = sources.load("embedded", limit=2, relations=["P36"]).cases
    specs = [spec for method in (first_of_two, second_of_two) if (spec := marked_spec(method))]
    searched.clear()
    calibrate(TINY, cases, specs, models, Choices(), protocol=parse_protocol(text))
    assert {searched.count(key) for key in searched} == {times}


def test_a_calibration_allows_for_workers_that_slow_one_another_down(monkeypatch):
    products = {1: 300.0, 2: 200.0, 3: 310.0}
    monkeypatch.setattr(calibration, "_products", products.__getitem__)
    assert calibration.slowdown(1) == 1
    assert calibration.slowdown(2) == 1.5
    assert calibration.slowdown(3) == 1  # noise makes nothing faster
    monkeypatch.undo()
    monkeypatch.setattr(calibration, "TRIED", 0.05)
    assert calibration.slowdown(2) >= 1
    monkeypatch.setattr(calibration, "embedded", type("None", (), {"NAMES": ()}))
    (case,) = sources.load("embedded", limit=1, relations=["P36"]).cases
    asked = []

    def slower(processes):
        asked.append(processes)
        return 1000.0

    monkeypatch.setattr(calibration, "slowdown", slower)
    specs = [spec for method in (slow,) if (spec := marked_spec(method))]
    rates = calibrate(TINY, [case], specs, models, Choices(), processes=2)
    assert asked == [2]
    assert rates.seconds["slow", "tiny_gpt2"] > 200  # 0.2 s and more


@edit_method("choosy")
def choosy(language_model):
    class Choosy:
        def edit(self, requests):
            together.extend(r.id for r in requests)
            if len(together) < 3:
                raise NotApplicable("not the first two")
            time.sleep(0.5)
            return [NoEdit() for _ in requests]

    return Choosy()


def test_a_step_to_which_a_method_is_not_applicable_says_nothing_of_the_others(monkeypatch):
    """The one pair that was tried had text after its answer: pairs were said to cost nothing."""
    rates = calibrated(monkeypatch, choosy, "sequence:20")
    assert len(together) == 4
    assert rates.seconds["choosy", "tiny_gpt2"] > 0.5  # of those two to which it is


def test_only_what_is_selected_is_calibrated(monkeypatch):
    """With ``-m facts`` pairs were timed too, and a run was stated at a quarter of its time."""
    cases = {case.id: case for case in sources.load("embedded", limit=1).cases}
    drawn = [case for case in cases.values() if case.task == "fact"][:3]
    sequence = SimpleNamespace(number=0, cases=tuple(drawn))
    labels = {case_id: (case,) for case_id, case in cases.items()}
    controller: Any = SimpleNamespace(
        options=Options(models=("m",)),
        run="r",
        plan=plan.TestPlan({"m": "m"}, labels, (), {}, 8),
        drawing=SimpleNamespace(sequences={"m": [sequence]}),
        fingerprints={},
        method_names=lambda: {"rome": "rome"},
    )
    config: Any = SimpleNamespace(
        pluginmanager=SimpleNamespace(get_plugin=lambda _: None, register=lambda *_: None),
        getoption=lambda _: "facts",
    )
    told: list[Any] = []
    monkeypatch.setattr(estimate, "estimated", lambda *given: told.append(given))

    def asked(label, occasion=""):
        told.clear()
        meanings = {"t": NodeId("locality", "rome", "m", label, occasion)}
        showing.show_progress(config, controller, None, meanings, 1, {})  # type: ignore[arg-type]
        return told[0][2]()

    assert asked("all", "sequence_3.0.retained") == drawn
    assert asked(drawn[1].id) == [drawn[1]]


def test_the_cases_of_a_calibration_stand_for_all():
    facts = sources.load("embedded", limit=9, relations=["P36"]).cases
    pairs = sources.load("embedded", limit=3, relations=["anaphor_number_agreement"]).cases
    chosen = calibration.spread([*facts, *pairs], 4)
    assert [case.task for case in chosen] == ["pair", "fact", "fact", "fact"]
    assert calibration.spread(facts[:2], 8) == sorted(
        facts[:2], key=lambda case: (len(case.probes), case.id)
    )
    samples = calibration.task_samples([*facts, *pairs], 2)
    assert [([case.task for case in chosen], share) for chosen, share in samples] == [
        (["fact", "fact"], 0.75),
        (["pair", "pair"], 0.25),
    ]


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_long_work_is_broken_off_and_its_rest_reckoned_from_the_share_done(clock):
    watch = Stopwatch(Silent(), patience=5.0)
    finished = []

    def work():
        with watch.task("editing, request", 4) as advance:
            for _ in range(4):
                with watch.task("tuning, step", 10) as step:
                    for _ in range(10):
                        clock[0] += 1.0
                        step(1)
                advance(1)
        finished.append(True)

    # 6 of 10 steps of one request of four: 6 s are spent, 34 s are left
    assert watch.seconds(work) == pytest.approx(40.0)
    assert not finished
    clock[0] = 0.0
    watch = Stopwatch(Silent(), patience=60.0)
    assert watch.seconds(work) == 40.0
    assert finished


def test_what_is_done_once_neither_counts_nor_breaks_off(clock):
    watch = Stopwatch(Silent(), patience=5.0)

    def work():
        with watch.task("editing, request", 2) as advance:
            with watch.task("second moment C", 100) as part:
                clock[0] += 50.0
                part(100)
            for _ in range(2):
                clock[0] += 1.0
                advance(1)

    assert watch.seconds(work) == 2.0


def test_what_methods_share_is_reckoned_once(clock):
    """The first method is broken off while it locates; the second finds what it needs located."""
    lm, watch = tiny_model("gpt2"), Stopwatch(Silent(), patience=5.0)

    def locate(keys):
        def make(missing):
            with watch.task("locating", len(missing)) as advance:
                for _ in missing:
                    clock[0] += 2.0
                    advance(1)
            return missing

        return lambda: lm.memo.get_many(keys, make)

    calibration.count_once(lm.memo)
    own, background = [("own", i) for i in range(20)], [("other", i) for i in range(5)]
    assert watch.seconds(locate(own)) == pytest.approx(40.0)
    assert watch.seconds(locate(own)) == 0.0
    assert watch.seconds(locate([*own, *background])) == pytest.approx(10.0)


def test_edits_are_counted_by_cases_whatever_a_test_is_about():
    drawn = (SimpleNamespace(number=0, cases=range(100)), SimpleNamespace(number=1, cases=range(7)))
    labels = {"P36": range(3), "P36/France": range(1)}
    plan: Any = SimpleNamespace(labels=labels)

    def counted(label, occasion="", drawing=None):
        return len(cases_of(plan, drawing, NodeId("locality", "rome", "m", label, occasion)))

    assert [counted(label) for label in ("P36", "P36/France", "not-there")] == [3, 1, 0]
    drawing: Any = SimpleNamespace(sequences={"m": drawn})
    assert counted("P36/France", "sequence_100.0.retained", drawing) == 1
    assert counted("all", "sequence_100.0.retained", drawing) == 100
    assert counted("all", "sequence_100.1.immediate", drawing) == 7


def test_few_edits_of_a_large_model_are_worth_a_calibration(monkeypatch):
    monkeypatch.setattr("kn_bench.testing.models.weight_bytes", {"small": 1e6, "large": 1e9}.get)
    assert estimate._worth_calibrating(["small"]) == estimate.WORTH_CALIBRATING
    assert estimate._worth_calibrating(["small", "large"]) == estimate.WORTH_CALIBRATING_LARGE


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--grain=unit",), ("--protocol=sequence:4",)], ids=str)
def test_a_run_of_ones_own_model_states_its_time_and_the_next_one_knows_it(bench, tmp_path, how):
    """The sentence before the first test, and the timings kept for the next run."""
    bench.pytester.makeconftest("")  # no toys
    own = tmp_path / "own"
    shutil.copytree(embedded.folder("tiny-gpt2"), own)
    cache = tmp_path / "cache"
    arguments = [f"--model={own}", "--cases=embedded", "--method=rome", "--method=none",
                 "--limit=4", "--relation=P36", "-k", "reliability", *how]  # fmt: skip
    bench.run(*arguments, KN_BENCH_CACHE=str(cache))
    (entry,) = json.loads((cache / "timings.json").read_text()).values()
    assert {method for method, *_ in entry["seconds"]} == {"rome", "none"}
    assert entry["edits"] == 8
    entry["seconds"] = [[m, model, 60.0] for m, model, _ in entry["seconds"]]
    kinds = json.loads((cache / "timings.json").read_text())
    (cache / "timings.json").write_text(json.dumps(dict.fromkeys(kinds, entry)))
    again = bench.run(*arguments, KN_BENCH_CACHE=str(cache)).stdout.str()
    assert re.search(r"kn_bench: about 8:\d\d for 8 edits, by an earlier run like it: ", again)
    assert re.search(r"kn_bench: took \d+:\d\d, estimated 8:\d\d", again)
