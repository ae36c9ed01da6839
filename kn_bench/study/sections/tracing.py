"""Causal tracing of facts and syntax, averaged by token position (Figure 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from kn_bench.cases.case import Case, Query, Task
from kn_bench.cases.sampling import stable_hash
from kn_bench.localise.corruption import Kind, TracePrompt
from kn_bench.localise.interventions import answers
from kn_bench.localise.token_positions import ROLES, TraceStudy, peak, trace_prompt, trace_study
from kn_bench.localise.tracing import KINDS, Trace
from kn_bench.measure.encoding import encode_query
from kn_bench.results import tables
from kn_bench.study.material import Material
from kn_bench.study.page import NothingToShow, Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.plots import TASK, heat_map, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

WHAT: dict[Task, str] = {
    "fact": "the answer's probability",
    "pair": "the preference for the grammatical member",
}
EXAMPLES = 12
"""Number of prompts from which the example is chosen."""
TITLES: dict[Kind, str] = {"hidden": "residual stream", "mlp": "MLP", "attention": "attention"}


@dataclass(frozen=True)
class TracedTask:
    """Traces of the prompts of one task that the model answers correctly."""

    task: Task
    cases: tuple[Case, ...]
    study: TraceStudy
    offered: int
    unfit: int


def run(material: Material) -> Section:
    """Compute this section of the study."""
    tried = [traced(material, task) for task in TASK]
    sides = [side for side in tried if side.cases]
    if not sides:
        unfit, offered = sum(side.unfit for side in tried), sum(side.offered for side in tried)
        raise NothingToShow(
            f"No prompt can be traced: of {offered} looked at, {unfit} cannot be put to the model "
            "with the subject corrupted (in a causal model it must stand before the answer), and "
            f"{offered - unfit} are not answered rightly."
        )
    s = material.settings
    return Section(
        "tracing",
        "Where does causal tracing point?",
        "Noise of three standard deviations is put on the embeddings of the subject (of a pair: "
        f"the word that governs agreement), {tables.counted(s.samples, 'sample')} of it; then "
        "every state of the corrupted run is put back to its clean value, one token and layer at "
        "a time "
        f"(MLP and attention: a window of {material.window} of {material.lm.n_layers} layers), and "
        "what the answer's probability regains is its indirect effect. Of a pair the preference "
        "for its grammatical member is followed, P(good) / (P(good) + P(bad)): a noun in a causal "
        "model's prompt has hardly a probability of its own. Only prompts that the model answers "
        "rightly are traced. The paper finds an early and a late site on facts, and "
        "neither on syntax.",
        tuple(sentence for side in sides for sentence in _findings(side)),
        tables=(_table(sides), _peaks(sides)),
        figures=(
            SectionFigure(
                "roles",
                "Mean indirect effect by token role and layer, for facts (above) and syntax "
                "(below). Where the subject ends the prompt, its last token is where the answer is "
                "read.",
                lambda: _draw_roles(material, sides),
                "Figure 9",
            ),
            *(
                SectionFigure(
                    f"example_{side.task}",
                    f"One {TASK[side.task][2].removesuffix('s')} prompt, token by token: indirect "
                    "effect of each state; the starred tokens are corrupted.",
                    partial(_draw_example, material, _example(side)),
                )
                for side in sides
            ),
        ),
        notes=tuple(
            f"{TASK[side.task][2]}: of {tables.counted(side.offered, 'prompt')} looked at, left "
            f"out: {side.unfit} that cannot be put to the model with the subject corrupted, and "
            f"{side.offered - side.unfit - len(side.cases)} not answered rightly or not needed."
            for side in tried
            if side.offered
        ),
    )


def traced(material: Material, task: Task) -> TracedTask:
    """Trace prompts that the model answers correctly, a few per relation or paradigm."""
    offered = sorted(
        (case for case in material.cases if case.task == task),
        key=lambda case: stable_hash("trace", case.id),
    )
    by_relation: dict[str, list[Case]] = {}
    for case in offered:
        by_relation.setdefault(case.relation, []).append(case)
    known: dict[str, list[tuple[Case, TracePrompt]]] = {relation: [] for relation in by_relation}
    looked, unfit = 0, 0
    # a few cases of each relation at a time, until the model answers as many as are wanted
    portion = 4 * material.settings.traced
    for start in range(0, max(map(len, by_relation.values()), default=0), portion):
        prompts: list[tuple[Case, TracePrompt]] = []
        for relation, cases in by_relation.items():
            if len(known[relation]) < material.settings.traced:
                for case in cases[start : start + portion]:
                    looked += 1
                    prompt = trace_prompt(material.lm, case.request)
                    if isinstance(prompt, TracePrompt):
                        prompts.append((case, prompt))
                    else:
                        unfit += 1
        answered = _known(material, prompts)
        for case, prompt in prompts:
            if case.id in answered:
                known[case.relation].append((case, prompt))
    chosen = [
        case_and_prompt
        for row in known.values()
        for case_and_prompt in row[: material.settings.traced]
    ]
    return TracedTask(
        task,
        tuple(case for case, _ in chosen),
        trace_study(
            material.lm,
            [prompt for _, prompt in chosen],
            [case.cluster for case, _ in chosen],
            window=material.window,
            samples=material.settings.samples,
            seed=material.settings.seed,
        ),
        looked,
        unfit,
    )


def _known(material: Material, offered: Sequence[tuple[Case, TracePrompt]]) -> set[str]:
    """Return the ids of cases answered correctly: facts by argmax, pairs by preference."""
    encoded = []
    for case, _ in offered:
        request = case.request
        both = [
            encode_query(Query(request.cloze, answer), material.lm.tokens, "pair")
            for answer in (request.target_true, request.target_new)
        ]
        encoded += [(case, query) for query in both if query is not None and None not in both]
    read = answers(material.lm, [query for _, query in encoded])
    known = set()
    for i in range(0, len(encoded), 2):
        case = encoded[i][0]
        preferred = read.log_prob[i] > read.log_prob[i + 1]
        if read.right[i] if case.task == "fact" else preferred:
            known.add(case.id)
    return known


def _findings(side: TracedTask) -> list[str]:
    name = TASK[side.task][2]
    total = side.study.total
    prompts = tables.counted(total.n, "prompt")
    peaks = []
    for kind in KINDS:
        most = peak([e for e in side.study.effects if e.kind == kind], output=False)
        if most is None or most.role is None:
            peaks.append(f"{TITLES[kind]} {tables.NOTHING}")
            continue
        role = ROLES[most.role]
        at = role if most.role in ("before", "answer") else f"at the {role}"
        layer = tables.NOTHING if most.layer is None else most.layer
        peaks.append(f"{TITLES[kind]} {at}, layer {layer} ({tables.mean(most.effect)})")
    return [
        f"On {name} ({prompts}) the noise takes {tables.mean(total)} from "
        f"{WHAT[side.task]}; apart from the output itself, most is regained in the "
        + "; ".join(peaks)
        + "."
    ]


def _table(sides: Sequence[TracedTask]) -> SectionTable:
    rows: list[TableRow] = [
        (TASK[side.task][2], TITLES[e.kind], ROLES[e.role], e.layer, e.effect)
        for side in sides
        for e in side.study.effects
    ]
    return SectionTable(
        "effects",
        "Mean indirect effect of every kind, role and layer, with 95 % intervals over prompts.",
        ("task", "state", "role", "layer", "indirect effect"),
        tuple(rows),
        left=3,
        digits=3,
        shown=0,
    )


def _peaks(sides: Sequence[TracedTask]) -> SectionTable:
    rows: list[TableRow] = []
    for side in sides:
        for kind in KINDS:
            sites = (
                peak([e for e in side.study.effects if (e.kind, e.role) == (kind, role)])
                for role in ("last", "answer")
            )
            cells = [cell for site in sites for cell in (site[1:] if site else (None, None))]
            rows.append((TASK[side.task][2], TITLES[kind], *cells))
    return SectionTable(
        "sites",
        "The layer with the greatest mean effect at the last subject token (the early site of "
        "facts in GPT-2 XL) and where the answer is read (the late one); a dash where layers are "
        "equal. The residual stream's last layer is the output itself where the answer is read.",
        ("task", "state", "early layer", "effect there", "late layer", "effect there "),
        tuple(rows),
        left=2,
        digits=3,
    )


def _draw_roles(material: Material, sides: Sequence[TracedTask]) -> Drawing:
    layers = [str(layer) for layer in range(material.lm.n_layers)]
    figure, axes = panels(3, len(sides), width=9.5, height=2.6 * len(sides))
    top = max(e.effect.mean for side in sides for e in side.study.effects)
    for row, side in enumerate(sides):
        present = [r for r in ROLES if any(e.role == r for e in side.study.effects)]
        for column, kind in enumerate(KINDS):
            values = np.full((len(present), material.lm.n_layers), np.nan)
            for e in side.study.effects:
                if e.kind == kind:
                    values[present.index(e.role), e.layer] = e.effect.mean
            ax = axes[3 * row + column]
            heat_map(
                ax,
                values,
                rows=[ROLES[r] for r in present] if column == 0 else [""] * len(present),
                columns=layers,
                two_sided=True,
                limit=top,
                numbers=2 if material.lm.n_layers <= 8 else None,
            )
            ax.set_title(f"{TASK[side.task][2]}: {TITLES[kind]} (n = {side.study.total.n})")
            ax.set_xlabel("layer")
    return figure


def _example(side: TracedTask) -> Trace:
    """Return the trace of the prompt with the most text between subject and answer."""
    return max(
        side.study.traces[:EXAMPLES], key=lambda t: abs(t.prompt.position - t.prompt.subject[1])
    )


def _draw_example(material: Material, trace: Trace) -> Drawing:
    tokens = [material.lm.tokens.tokenizer.decode([i]).strip() for i in trace.prompt.ids]
    start, stop = trace.prompt.subject
    names = [f"{text}*" if start <= i < stop else text for i, text in enumerate(tokens)]
    figure, axes = panels(3, width=9.5, height=1.0 + 0.22 * len(tokens))
    top = float(trace.indirect_effects.abs().max())
    for number, (ax, kind) in enumerate(zip(axes, trace.kinds, strict=True)):
        heat_map(
            ax,
            trace.indirect_effects[number].double().numpy(),
            rows=names if number == 0 else [""] * len(names),
            columns=[str(layer) for layer in range(material.lm.n_layers)],
            two_sided=True,
            limit=top,
        )
        ax.set_title(TITLES[kind])
        ax.set_xlabel("layer")
    answer = material.lm.tokens.tokenizer.decode([trace.prompt.answer]).strip()
    what = f'P("{answer}")' if trace.prompt.rival is None else f'preference for "{answer}"'
    figure.suptitle(f"{what}: {trace.clean:.2f} clean, {trace.corrupted:.2f} corrupted")
    return figure
