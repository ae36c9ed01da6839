"""A benchmark in miniature, without torch: toy cases, toy models, an engine that looks answers up.

``install()`` puts it in the place of the real cases, model loading and engine, so that the pytest
layer can be tested by the thousand. The engine writes a line to ``computed.log`` for each unit, and
environment variables make it fail where a test wants it to.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import kn_bench.results.log
import kn_bench.results.manifest
import kn_bench.results.store
from kn_bench.cases.case import CRITERIA, Case, Cloze, Criterion, EditRequest, Probe, Selection
from kn_bench.measure.measurement import Answer, CaseResult, EditRecord, Measurement, UnitResult

LOG = Path("computed.log")


class NotApplicable(Exception):  # noqa: N818 - called as the real one is
    pass


def case(number, relation="P36"):
    request = EditRequest(
        id=f"{relation}/subject_{number}",
        task="fact",
        relation=relation,
        subject=f"subject {number}",
        prompt="{} is at",
        target_true="here",
        target_new="there",
    )
    probes = tuple(
        Probe(f"{criterion}/0", criterion, request.cloze, "there", "here", kind="same_relation")
        for criterion in CRITERIA
        if criterion != "overturn"
    )
    reasons: dict[Criterion, str] = {}
    if relation == "P37":
        reasons["symmetry"] = f"{relation} has no inverse relation"
    # its probe stays, so that there is a test to be skipped
    return Case(request, probes, request.subject, "toy", reasons)


def load(spec, *, limit=None, relations=(), seed=0):
    known = ("P36", "P37", "P106")
    for relation in relations:
        if relation not in known:
            raise ValueError(f"unknown relation {relation!r}; known: {', '.join(known)}")
    count = int(os.environ.get("TOY_CASES", "4")) if limit is None else limit
    kept = [relation for relation in known if not relations or relation in relations]
    return Selection(tuple(case(number, relation) for relation in kept for number in range(count)))


def answer(right):
    return Answer(
        log_prob_expected=-0.5 if right else -3.0,
        log_prob_rejected=-2.0,
        prob=right,
        tf_token=float(right),
        tf_all=right,
        rank=0 if right else 5,
        argmax="there" if right else "here",
        generated="there" if right else "here",
        gives_expected=right,
        gives_rejected=not right,
    )


def measurement(model, method, case, probe):
    digest = hashlib.sha256(f"{model}{method}{case.id}{probe.id}".encode()).digest()
    return Measurement(
        model=model,
        method=method,
        case=case.id,
        criterion=probe.criterion,
        probe=probe.id,
        kind=probe.kind,
        task="fact",
        relation=case.relation,
        source=case.source,
        cluster=case.cluster,
        expected=probe.expected,
        rejected=probe.rejected,
        n_expected=1,
        n_rejected=1,
        before=answer(False),
        after=answer(digest[0] % 2 == 0 and os.environ.get("TOY_WORSE") != method),
        kl=digest[1] / 256,
    )


class Engine:
    def __init__(self, model, *, cache=None, memory=None, seed=0):
        self.model = model

    def put_back(self):
        return ()

    def measure(self, method_name, method, cases, *, control=False, writer=None):
        method.edit([case.request for case in cases])
        with LOG.open("a") as log:
            gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or "none"
            log.write(f"{self.model.name} {method_name} {len(cases)} {os.getpid()} {gpus}\n")
        time.sleep(float(os.environ.get("TOY_UNIT_SECONDS", "0")))
        if os.environ.get("TOY_RAISES"):
            raise (NotApplicable if method_name == "toy-a" else ValueError)(
                os.environ["TOY_RAISES"]
            )
        if os.environ.get("TOY_HANGS") == method_name:
            time.sleep(60)
        if os.environ.get("TOY_EXITS") == method_name:
            os._exit(0)
        if os.environ.get("TOY_LETHAL") == method_name:
            os.kill(os.getpid(), signal.SIGKILL)
        unit = f"{self.model.name} {method_name}"
        if os.environ.get("TOY_KILL_UNIT") == unit:
            once(lambda: os.kill(os.getpid(), signal.SIGKILL))
        if os.environ.get("TOY_KILL_EACH") == unit:
            os.kill(os.getpid(), signal.SIGKILL)
        results = {
            case.id: CaseResult(
                case.id,
                EditRecord(0.01, "toy", 1.0, {}),
                tuple(
                    measurement(self.model.name, method_name, case, probe) for probe in case.probes
                ),
            )
            for case in cases
        }
        return UnitResult(self.model.name, method_name, results, 0.1, 0.2)


def once(do):
    """Do it the first time that any process of the session comes here."""
    try:
        Path("done.once").touch(exist_ok=False)
    except FileExistsError:
        return
    do()


class Killer:
    """A plug-in: a conftest's own hooks are not called for suites that lie elsewhere."""

    def pytest_runtest_protocol(self, item):
        """Says of a test that it has been run, and runs nothing."""
        return True if os.environ.get("TOY_SWALLOW") == item.nodeid.partition("::")[2] else None

    def pytest_runtest_call(self, item):
        if os.environ.get("TOY_SLOW"):
            time.sleep(float(os.environ["TOY_SLOW"]))
        if os.environ.get("TOY_ODD") == item.nodeid.partition("::")[2]:
            item.user_properties.append(("path", Path()))

    def pytest_runtest_setup(self, item):
        if os.environ.get("TOY_KILL_AT") == item.nodeid.partition("::")[2]:
            once(lambda: os.kill(os.getpid(), signal.SIGKILL))


class Toy:
    """A method that returns nothing: the toy engine wants none."""

    def edit(self, requests):
        return [None] * len(requests)


def load_model(
    name, *, device="cpu", dtype="float32", attention=None, commit=None, chat_template=False
):
    if name == "toy-broken":
        raise ValueError("cannot load the model 'toy-broken'")
    parameters = SimpleNamespace(parameters=list)
    return SimpleNamespace(name=name, is_causal=name != "toy-masked", hf=parameters)


def finish(store, timings):
    store.close()
    tests = kn_bench.results.log.closed_tests(store.folder / kn_bench.results.log.LOG)
    store.manifest = store.manifest.ended(timings, tests)
    kn_bench.results.manifest.write_manifest(store.folder, store.manifest)


def install():
    def stub(name, **contents):
        module = ModuleType(name)
        module.__dict__.update(contents)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        setattr(sys.modules[parent], child, module)

    import kn_bench.cases
    import kn_bench.editing
    import kn_bench.editing.builtin
    import kn_bench.measure
    import kn_bench.model.embedded
    import kn_bench.testing.controller
    import kn_bench.testing.method_fixtures
    import kn_bench.testing.plan
    import kn_bench.testing.summary

    stub("kn_bench.cases.sources", load=load, content_hash=lambda cases: str(len(cases)))
    stub("kn_bench.cases.sources.defaults", default_specs=lambda models: (("embedded",), ""))
    stub("kn_bench.editing.edit", NotApplicable=NotApplicable)
    stub("kn_bench.measure.engine", Engine=Engine)
    stub("kn_bench.model.loading", load_model=load_model)
    stub("kn_bench.model.embedded", NAMES=("toy-gpt", "toy-masked"), folder=lambda name: Path())
    replace = setattr
    # what the tests count with
    replace(kn_bench.testing.plan, "OFFERED", 4)
    replace(kn_bench.testing.plan, "OFFERED_IN_ALL", 0)
    replace(kn_bench.testing.plan, "choose", lambda cases, seed: cases)
    replace(kn_bench.editing.builtin, "files", list)
    # the real one changes when somebody edits the source while tests run
    replace(kn_bench.testing.method_fixtures, "code_hash", lambda origins: "toy")
    replace(kn_bench.testing.controller, "fingerprint", lambda name: name)
    replace(kn_bench.testing.controller, "refuse_unloadable", lambda *args, **kwargs: None)
    if not os.environ.get("TOY_BOARD"):  # it takes pandas a second to be imported
        replace(kn_bench.testing.summary, "end_run", lambda folder, options: None)
        replace(kn_bench.results.store.RunStore, "finish", finish)


__all__ = ["Cloze", "Killer", "NotApplicable", "Toy", "install"]
