"""A run's folder: what is written can be read, killed, continued, and refused with a reason."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kn_bench.cases.case import CRITERIA, Criterion, Exclusion
from kn_bench.measure.criteria import judge
from kn_bench.measure.measurement import Answer, Checkpoint, Measurement, Written
from kn_bench.measure.protocols import ONCE, Occasion
from kn_bench.results import store as store_module
from kn_bench.results.baseline import read_baseline, save_baseline
from kn_bench.results.files import StoreError, atomically, together, write_text
from kn_bench.results.frames import EXPLANATION, uncoded
from kn_bench.results.loading import load_runs
from kn_bench.results.log import KEYED, LOG, lines_of, repaired, rows
from kn_bench.results.manifest import FORMAT, differences, hash_files, read_manifest, write_manifest
from kn_bench.results.merging import merge
from kn_bench.results.rejudging import rejudged
from kn_bench.results.rows import (
    KINDS,
    CrashRow,
    EditRow,
    Key,
    VerdictRow,
    decode_rows,
    encode_row,
    encode_rows,
    kind_of,
)
from kn_bench.results.store import RunStore, find_run, runs, unused_name
from tests.made_up import (
    NEW,
    TRUE,
    case_of,
    manifest,
    measured,
    result_of,
    rows_of,
    says,
    whole_case,
    write_run,
)

ALL: dict[Criterion, float] = dict.fromkeys(CRITERIA, 1.0)


def _tests(n: int, method: str = "rome") -> list[str]:
    """The rows of the tests of ``n`` cases."""
    texts = []
    for i in range(n):
        case, result = whole_case(ALL, id=f"embedded/P36/c{i}", cluster=f"c{i}", method=method)
        texts += rows_of(case, result, CRITERIA, method=method)
    return texts


def _log(folder: Path) -> Path:
    return folder / LOG


# --- a run -------------------------------------------------------------------------------------


def test_a_run_is_there_before_it_is_finished_and_complete_after(tmp_path):
    with RunStore.create(tmp_path, manifest()) as store:
        for text in _tests(2):
            store.append(text)
            kinds = [type(row) for row in rows(_log(store.folder))]
            assert kinds[-1] is VerdictRow  # on disk before the test is reported
        store.sync()
        store.leave_out([Exclusion("pararel/P36/x", "no template", None, "why")])
        store.finish({"editing": 2.0})
    measured_rows = [row for row in rows(_log(store.folder)) if isinstance(row, Measurement)]
    frame = pd.read_parquet(store.folder / "measurements.parquet")
    assert len(frame) == len(measured_rows) == 2 * (1 + 4 + 4 + 2 + 4 + 1)
    assert list(frame["case"]) == [row.case for row in measured_rows]
    ended = read_manifest(store.folder)
    assert ended.finished
    assert ended.timings == {"editing": 2.0}
    assert not list(store.folder.glob(".*"))  # no temporary file is left
    assert load_runs([store.folder]).left_out[0].reason == "no template"


def test_parquet_has_all_fields_with_infinity_as_such(tmp_path):
    never = replace(says(TRUE), log_prob_expected=-math.inf)
    row = measured("reliability", never, says(NEW), kl=math.inf)
    store = RunStore.create(tmp_path, manifest())
    for text in rows_of(case_of([row]), result_of([row]), ["reliability"]):
        store.append(text)
    store.finish({})
    (stored,) = pd.read_parquet(store.folder / "measurements.parquet").to_dict("records")
    assert stored["kl"] == math.inf
    assert stored["before_log_prob_expected"] == -math.inf
    for name in (field.name for field in fields(Answer)):
        assert stored[f"after_{name}"] == getattr(row.after, name)
    assert (stored["kind"], stored["n_expected"], stored["expected"]) == ("", 1, NEW)


def test_edit_records_and_tests_are_stored_once(tmp_path):
    with RunStore.create(tmp_path, manifest()) as store:
        for text in _tests(2) + _tests(1):
            store.append(text)
    stored = list(rows(_log(store.folder)))
    assert sum(isinstance(row, EditRow) for row in stored) == 2
    assert sum(isinstance(row, VerdictRow) for row in stored) == 12
    assert len(list(lines_of(_log(store.folder), "measurement"))) == 32


ONCE_A_CASE = frozenset({"edit", "curve", "generation"})
"""What a worker sends with the first test of a case or a sequence that it measures itself."""
ONCE_A_TEST = frozenset({"measurement", "exclusion", "verdict", "crash"})


def _sent(criteria: Iterable[Criterion], occasion: Occasion) -> str:
    """The rows of some tests of a case, with all that goes with the first of them."""
    case, result = whole_case(ALL, id="embedded/P36/c0", cluster="c0")
    left_out = Exclusion(case.id, "too long", "generality/0", "why")
    result = replace(result, exclusions=(left_out,), written=Written((), 5.0, 4.0))
    curve = [Checkpoint(step, step, 1.0, 1, None, 0, 9.0, 5, None, 0, None, 0) for step in (0, 1)]
    texts = []
    for criterion in criteria:
        key = Key("tiny-gpt2", "rome", case.id, criterion, occasion)
        verdict = judge(criterion, case, result)
        texts.append(encode_rows(key, case, result, verdict, step=1, curve=curve))
        result, curve = replace(result, edit=None, written=None), []
    return "".join(texts)


@pytest.mark.parametrize("occasion", [ONCE, Occasion("sequence:2", 1, "retained")])
@pytest.mark.parametrize("by", ["resumed", "another worker", "merged"])
def test_what_goes_with_the_first_test_is_kept_once_whoever_sends_it_again(tmp_path, by, occasion):
    whole = _sent(CRITERIA, occasion)
    assert {kind_of(line) for line in whole.encode().splitlines(keepends=True)} == KINDS.keys() - {
        "crash"
    }
    first, second = _sent(CRITERIA[:2], occasion), _sent(CRITERIA[2:], occasion)
    if by == "merged":
        for run, sent in {"a": first, "b": second}.items():
            shard = {"shard": f"{1 + (run == 'b')}/2"}
            with RunStore.create(tmp_path, manifest(run, options=shard)) as store:
                store.append(sent)
                store.finish({})
        folder = merge([tmp_path / "runs/a", tmp_path / "runs/b"], tmp_path, "one")
    else:
        with RunStore.create(tmp_path, manifest()) as store:
            store.append(first)
            if by == "another worker":
                store.append(second)
        folder = store.folder
    if by == "resumed":
        with RunStore.resume(tmp_path, "one", manifest()) as store:
            store.append(second)
    assert _log(folder).read_text() == whole


def test_every_kind_of_row_goes_with_its_test_or_is_kept_once():
    assert KINDS.keys() == ONCE_A_CASE | ONCE_A_TEST
    assert ONCE_A_CASE | {"verdict"} == KEYED


def test_a_unit_of_many_cases_is_one_text(tmp_path):
    with RunStore.create(tmp_path, manifest()) as store:
        store.append("".join(_tests(3)))
        store.append("".join(_tests(4)))  # of which three are there already
    keys = [row.key for row in rows(_log(store.folder)) if isinstance(row, VerdictRow)]
    assert len(keys) == len(set(keys)) == 24
    assert len(list(lines_of(_log(store.folder), "measurement"))) == 4 * 16


def test_verdicts_can_be_drawn_again_from_the_log(tmp_path):
    folder = write_run(tmp_path, {"rome": {c: [0.0, 0.25, 1.0] for c in CRITERIA}})
    stored = [row for row in rows(_log(folder)) if isinstance(row, VerdictRow)]
    assert list(rejudged(_log(folder))) == stored
    once, again = load_runs([folder]), load_runs([folder], judge_again=True)
    pd.testing.assert_frame_equal(once.verdicts, again.verdicts)
    by_column = load_runs([folder], judge_again=True, explained=False)
    assert by_column.verdicts.equals(once.verdicts.drop(columns=EXPLANATION))
    # all measurements first and all verdicts last: no row is taken for another test's
    whole = _log(folder).read_bytes().splitlines(keepends=True)
    whole.sort(key=lambda line: line.startswith(b'{"row":"verdict"'))
    _log(folder).write_bytes(b"".join(whole))
    moved = load_runs([folder], judge_again=True, explained=False).verdicts
    first, second = (
        uncoded(rows).sort_values(["case", "criterion"], ignore_index=True)
        for rows in (moved, by_column.verdicts)
    )
    pd.testing.assert_frame_equal(first, second)


def test_whoever_asks_for_a_frame_may_write_into_it(tmp_path):
    folder = write_run(tmp_path, {"rome": {c: [0.0, 0.25, 1.0] for c in CRITERIA}})
    frame = load_runs([folder]).verdicts
    for name in frame.select_dtypes("number"):
        frame.loc[frame.index[0], name] = 1
        assert frame[name].iloc[0] == 1


# --- killed and continued ----------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0, 1))
def test_a_run_cut_anywhere_ends_as_the_uninterrupted_one(tmp_path_factory, cut):
    reports, texts = tmp_path_factory.mktemp("reports"), _tests(3)
    with RunStore.create(reports, manifest("whole")) as whole:
        for text in texts:
            whole.append(text)
    with RunStore.create(reports, manifest("cut")) as broken:
        for text in texts:
            broken.append(text)
    size = _log(broken.folder).stat().st_size
    os.truncate(_log(broken.folder), int(cut * size))
    with RunStore.resume(reports, "cut", manifest("cut")) as resumed:
        done = resumed.done
        for text in texts:
            key = decode_rows(text)[-1].key  # type: ignore[union-attr]
            if key not in done:
                resumed.append(text)
    assert _log(broken.folder).read_bytes() == _log(whole.folder).read_bytes()


def test_errors_and_crashes_are_measured_again(tmp_path):
    case, result = whole_case(ALL, id="embedded/P36/c0", cluster="c0")
    failed = rows_of(case, result_of([], error="boom", case=case.id), ["reliability"])
    lost = encode_row(CrashRow("tiny-gpt2", "rome", case.id, "locality", "worker 'gw1' crashed"))
    good = rows_of(case, result, ["generality", "overturn"])
    with RunStore.create(tmp_path, manifest()) as store:
        for text in [*failed, good[0], lost, good[1]]:
            store.append(text)
    with RunStore.resume(tmp_path, "last", manifest()) as store:
        assert {key.criterion for key in store.done} == {"generality", "overturn"}
        store.append(rows_of(case, result, ["reliability"])[0])
    stored = list(rows(_log(store.folder)))
    assert [r.criterion for r in stored if isinstance(r, VerdictRow)] == [
        "generality", "overturn", "reliability"
    ]  # fmt: skip
    assert sum(isinstance(row, EditRow) for row in stored) == 1
    assert not any(isinstance(row, CrashRow) for row in stored)


def test_repairing_a_repaired_log_changes_nothing(tmp_path):
    folder = write_run(tmp_path, {"rome": {c: [1.0] for c in CRITERIA}})
    before = _log(folder).read_bytes()
    assert repaired(_log(folder)) == repaired(_log(folder))
    assert _log(folder).read_bytes() == before


def test_a_killed_writer_leaves_every_appended_row(tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from tests.made_up import manifest
from tests.test_store import _tests
from kn_bench.results.store import RunStore
store = RunStore.create(Path({str(tmp_path)!r}), manifest())
for text in _tests(2):
    store.append(text)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == -signal.SIGKILL
    verdicts = [row for row in rows(_log(tmp_path / "runs" / "one")) if isinstance(row, VerdictRow)]
    assert len(verdicts) == 12


def test_a_torn_last_line_is_passed_over_and_a_broken_one_inside_is_not(tmp_path):
    folder = write_run(tmp_path, {"rome": {c: [1.0] for c in CRITERIA}})
    whole = _log(folder).read_bytes()
    n = len(list(rows(_log(folder))))
    _log(folder).write_bytes(whole[:-30])
    assert len(list(rows(_log(folder)))) == n - 1
    broken = whole.replace(b'{"row":"edit"', b'{"wor":"edit"')
    _log(folder).write_bytes(broken)
    with pytest.raises(StoreError, match="line 2 is no row of a log; only the last line of a kill"):
        list(rows(_log(folder)))
    with pytest.raises(StoreError, match="line 2"):
        RunStore.resume(tmp_path, "one", manifest())
    assert _log(folder).read_bytes() == broken  # refused without touching it
    not_text = whole.replace(b'"row":"edit"', b'"row":"edit","x":"\xc4"')
    _log(folder).write_bytes(not_text)
    for read in (lambda: list(rows(_log(folder))), lambda: load_runs([folder])):
        with pytest.raises(StoreError, match="line 2 is not UTF-8 text"):
            read()
    ill_typed = whole.replace(b'"seconds":', b'"seconds":"long","was":', 1)
    assert ill_typed != whole
    _log(folder).write_bytes(ill_typed)
    with pytest.raises(StoreError, match="line 2 is no row of a log: unknown field"):
        RunStore.resume(tmp_path, "one", manifest())
    assert _log(folder).read_bytes() == ill_typed


class FullDisk:
    """A log on a disk that has room for a few bytes more."""

    def __init__(self, log, room: int) -> None:
        self._log, self._room = log, room

    def write(self, data: bytes) -> int:
        if not self._room:
            raise OSError(28, "No space left on device")
        written = self._log.write(data[: self._room])
        self._room -= written
        return int(written)

    def __getattr__(self, name: str):
        return getattr(self._log, name)


def test_a_full_disk_is_one_sentence_and_leaves_whole_rows(tmp_path):
    store = RunStore.create(tmp_path, manifest())
    first, second, *_ = _tests(1)
    store.append(first)
    good = _log(store.folder).read_bytes()
    store._log = FullDisk(store._log, room=50)  # type: ignore[assignment]
    with pytest.raises(StoreError) as error:
        store.append(second)
    assert str(error.value).endswith(
        "measurements.jsonl cannot be written (No space left on device): make room and continue "
        "with --resume one"
    )
    assert _log(store.folder).read_bytes() == good
    store._log._room = 10**6  # type: ignore[attr-defined]
    store.append(second)  # what did not fit was not taken for written
    assert len([row for row in rows(_log(store.folder)) if isinstance(row, VerdictRow)]) == 2


# --- names, folders, manifests -----------------------------------------------------------------


def test_a_taken_name_is_refused_with_what_to_do(tmp_path):
    RunStore.create(tmp_path, manifest()).close()
    with pytest.raises(StoreError) as error:
        RunStore.create(tmp_path, manifest())
    assert str(error.value) == (
        f"there is a run 'one' in {tmp_path}/runs: continue it with --resume one, or choose "
        "another name"
    )


@pytest.mark.parametrize("name", ["last", "", "..", "-x", "a/b", "a b", "é"])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(StoreError, match="cannot name a run: letters, digits"):
        RunStore.create(tmp_path, manifest(name))
    assert not list(tmp_path.iterdir())


def test_last_is_the_newest_run(tmp_path):
    with pytest.raises(StoreError, match=r"there is no run 'last': .* has none"):
        find_run(tmp_path, "last")
    for name in ("b", "c", "a"):
        RunStore.create(tmp_path, manifest(name)).close()
    assert [folder.name for folder in runs(tmp_path)] == ["b", "c", "a"]
    assert find_run(tmp_path, "last").name == "a"
    assert find_run(tmp_path, str(tmp_path / "runs" / "c")).name == "c"
    with pytest.raises(StoreError, match=r"there is no run 'd': .*runs has b, c, a"):
        find_run(tmp_path, "d")


@pytest.mark.parametrize(
    ("change", "clear"),
    [
        (lambda text: text[:-20], True),
        (lambda text: text.replace('"format": 1', '"format": 2'), True),
        (lambda text: text.replace('"seed": 0', '"seed": "none"'), True),
        (lambda text: text.replace('"created"', '"begun"'), False),
        (lambda text: text.replace('+00:00"', '+02:00"')[:-20], False),
    ],
)
@pytest.mark.parametrize("broken", ["a", "c"])
def test_last_passes_over_a_broken_manifest_that_is_older(tmp_path, broken, change, clear):
    for name in ("b", "c", "a"):
        RunStore.create(tmp_path, manifest(name)).close()
    path = tmp_path / "runs" / broken / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(StoreError, match="manifest"):
        read_manifest(path.parent)
    if clear and broken == "c":
        with pytest.warns(
            UserWarning, match=r"passed over .* older than run a: .*c/manifest\.json "
        ):
            assert find_run(tmp_path, "last").name == "a"
    else:
        with pytest.raises(StoreError, match=rf"'last' may be a run .*{broken}/manifest\.json"):
            find_run(tmp_path, "last")


@pytest.mark.parametrize("text", ["", "{}", '{"format":2}', '{"created":"yesterday"}'])
@pytest.mark.parametrize("broken", ["a", "c"])
def test_last_is_refused_where_a_manifest_is_broken(tmp_path, broken, text):
    for name in ("b", "c", "a"):
        RunStore.create(tmp_path, manifest(name)).close()
    (tmp_path / "runs" / broken / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=rf"'last' may be a run .*{broken}/manifest\.json "):
        find_run(tmp_path, "last")
    with pytest.raises(StoreError, match=r"there is no run 'd': .*runs has b, "):
        find_run(tmp_path, "d")
    assert find_run(tmp_path, "b").name == "b"


@pytest.mark.parametrize("more", [{}, {"extra": 1}])
@pytest.mark.parametrize("format", [FORMAT + 1, 99])
def test_what_a_newer_version_wrote_is_told(tmp_path, format, more):
    folder = write_run(tmp_path, {"rome": {"reliability": [1.0]}})
    baseline = tmp_path / "baseline.json"
    save_baseline(load_runs([folder]), baseline)
    readers = {folder / "manifest.json": lambda: load_runs([folder]),
               baseline: lambda: read_baseline(baseline)}  # fmt: skip
    for path, read in readers.items():
        read()
        whole = json.loads(path.read_text())
        path.write_text(json.dumps({**whole, "format": format, **more}))
        sentence = rf"{path.name} was written by a newer kn_bench \(format {format}\): update kn_b"
        with pytest.raises(StoreError, match=sentence):
            read()


@pytest.mark.parametrize(("apart", "begun"), [(0, True), (1, False), (1, True), (10**6, False)])
def test_unused_names_do_not_collide(tmp_path, monkeypatch, apart, begun):
    """Runs that drew their names in one second had one name, and the second refused to begin."""
    begin = datetime(2026, 1, 31, 12, tzinfo=UTC)
    times = [begin + timedelta(microseconds=apart * i) for i in range(3)]
    texts = iter([time.isoformat(timespec="microseconds") for time in times])
    monkeypatch.setattr("kn_bench.results.store.now", lambda: next(texts))
    names = []
    for _ in range(3):
        names.append(unused_name(tmp_path))
        if begun:
            RunStore.create(tmp_path, manifest(names[-1])).close()
    assert len(set(names)) == 3
    assert sorted(names) == names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"code": "d" * 64}, "code: the source of the benchmark or a method"),
        (
            {"models": {"tiny-gpt2": "e" * 64}},
            "models: tiny-gpt2 aaaaaaaaaaaa then, eeeeeeeeeeee now",
        ),
        ({"models": {}}, "models: tiny-gpt2 aaaaaaaaaaaa then, absent now"),
        ({"data": {"embedded": "f" * 64}}, "data: embedded bbbbbbbbbbbb then, ffffffffffff now"),
        ({"options": {"limit": "5", "dtype": "float32"}}, "options: limit 20 then, 5 now"),
    ],
)  # fmt: skip
def test_a_run_of_anything_else_is_not_continued(tmp_path, changes, message):
    RunStore.create(tmp_path, manifest()).close()
    with pytest.raises(StoreError) as error:
        RunStore.resume(tmp_path, "one", manifest(**changes))
    assert str(error.value) == (
        f"run 'one' cannot be continued, for it was made of something else: {message}. "
        "Restore what differs, or start a new run"
    )


def test_another_machine_may_continue_a_run():
    then = manifest()
    assert (
        differences(then, replace(then, host=replace(then.host, cpus=99, devices=("cuda",)))) == ()
    )
    other = replace(then, versions={**then.versions, "torch": "9.9"})
    assert any("versions: torch" in clause for clause in differences(then, other))


def test_times_of_a_continued_run_add_up(tmp_path):
    RunStore.create(tmp_path, manifest()).finish({"editing": 1.0})
    RunStore.resume(tmp_path, "one", manifest()).finish({"editing": 2.0, "measuring": 3.0})
    ended = read_manifest(tmp_path / "runs" / "one")
    assert ended.timings == {"editing": 3.0, "measuring": 3.0}
    assert len(ended.resumed) == 1


def test_two_writers_of_one_run_are_refused(tmp_path):
    pytest.importorskip("fcntl")
    with (
        RunStore.create(tmp_path, manifest()),
        pytest.raises(StoreError, match="is being written by another process"),
    ):
        RunStore.resume(tmp_path, "one", manifest())


def test_two_runs_of_one_name_at_one_instant_have_the_manifest_of_the_winner(tmp_path, monkeypatch):
    """The second begins between the first one's look at the folder and its manifest."""
    second = []

    def interrupted(folder, of_first):
        monkeypatch.setattr("kn_bench.results.store.write_manifest", write_manifest)
        try:
            RunStore.create(tmp_path, replace(of_first, seed=99))
        except StoreError as error:
            second.append(str(error))
        write_manifest(folder, of_first)

    monkeypatch.setattr("kn_bench.results.store.write_manifest", interrupted)
    with RunStore.create(tmp_path, manifest()) as first:
        assert "is being written by another process" in second[0]
        assert read_manifest(first.folder).seed == first.manifest.seed != 99


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "reports").write_text("a file, where a folder should be")
    with pytest.raises(StoreError, match=r"one cannot be written \(Not a directory\): make room"):
        RunStore.create(tmp_path / "reports", manifest())


def test_a_manifest_edited_by_hand_is_one_sentence(tmp_path):
    folder = write_run(tmp_path, {"rome": {"reliability": [1.0]}})
    (folder / "manifest.json").write_text('{"run": 3}')
    with pytest.raises(
        StoreError, match=r"manifest.json holds no Manifest: field 'run' holds a num"
    ):
        read_manifest(folder)
    with pytest.raises(StoreError, match=r"expected a run, and it has no manifest\.json"):
        read_manifest(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "board.md"
    path.write_text("old")
    with contextlib.suppress(RuntimeError), atomically(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with atomically(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_is_as_private_as_other_new_ones_and_the_umask_is_left_alone(
    tmp_path, monkeypatch, mask
):
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patched:
            # between two calls other threads would make files that all may write
            patched.setattr(os, "umask", lambda _: pytest.fail("the umask is changed"))
            write_text(tmp_path / "file", "a")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _write_together(*paths: Path) -> None:
    with together():
        write_text(paths[0], "new")
        with together():  # is part of the first
            for path in paths[1:]:
                write_text(path, "new")
            assert not paths[0].is_file() or paths[0].read_text() == "old"


def test_files_written_together_are_all_there_or_none_is(tmp_path):
    a, b, c, folder = (tmp_path / name for name in ("a", "b", "c", "folder"))
    a.write_text("old")
    folder.mkdir()
    with pytest.raises(StoreError, match="a would be written twice"):
        _write_together(a, c, folder / ".." / "a")
    with pytest.raises(StoreError, match="folder cannot be written"):
        _write_together(a, c, folder)
    assert sorted(tmp_path.iterdir()) == [a, folder]
    assert a.read_text() == "old"
    _write_together(a, b, c)
    assert [path.read_text() for path in (a, b, c)] == ["new"] * 3
    write_text(a, "alone")
    write_text(a, "and again")
    assert a.read_text() == "and again"


def test_hashes_of_files_do_not_depend_on_order_and_place(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "x.py").write_text("1")
        (tmp_path / folder / "sub" / "y.py").write_text("2")
    first, second = ([*(tmp_path / folder).rglob("*.py")] for folder in ("a", "b"))
    assert hash_files(first, tmp_path / "a") == hash_files(second[::-1], tmp_path / "b")
    (tmp_path / "b" / "x.py").write_text("3")
    assert hash_files(first, tmp_path / "a") != hash_files(second, tmp_path / "b")


def test_start_up_imports_neither_pandas_nor_torch():
    code = (
        f"import sys, {store_module.__name__}, kn_bench.commands.app\n"
        "assert not {'pandas', 'pyarrow', 'torch', 'scipy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
