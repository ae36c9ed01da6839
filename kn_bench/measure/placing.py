"""Probes in ids, in place: a causal model's prompt and answers, a masked model's gap.

Both fitters keep the texts they have encoded and what they made of them, so that what many cases
share is done once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from kn_bench.cases.case import Cloze, Probe, Scoring
from kn_bench.measure.fitted import (
    AROUND,
    BOUNDARY,
    LONG,
    NO_CONTEXT,
    NO_TOKEN,
    NOT_LAST,
    SAME,
    SEVERAL,
    SPECIAL,
    Ids,
    Misfit,
    Row,
)
from kn_bench.model.tokens import Span, Spanned, Tokens

Key = tuple[str, ...]


class Body(NamedTuple):
    """What is fitted of a probe; shared by all probes that ask the same."""

    prompt_ids: Ids
    answer_position: int
    expected: Row
    rejected: Row
    first_expected: int


def key_of(probe: Probe) -> Key:
    """All that the ids of a probe depend on; of plain texts, whose hashes Python keeps."""
    cloze = probe.cloze
    return (cloze.left, cloze.right, probe.expected, probe.rejected, probe.scoring, probe.task)


def fitter_for(tokens: Tokens, prefix: str) -> Causal | Masked:
    """The fitter of the model's kind, for prompts with ``prefix`` in front."""
    return Causal(tokens, prefix) if tokens.kind == "causal" else Masked(tokens, prefix)


def placed(fitter: Causal | Masked, probe: Probe) -> Body | Misfit:
    """What ``fitter`` makes of one probe."""
    fitter.read([probe])
    return fitter.fit([probe])[key_of(probe)]


def _prefixed(cloze: Cloze, prefix: str) -> Cloze:
    return Cloze(f"{prefix} {cloze.left}".rstrip(), cloze.right) if prefix else cloze


def _is_asked_too_early(probe: Probe) -> bool:
    """Whether more of the question follows a fact's answer (a pair's scoring allows for that)."""
    return probe.task == "fact" and not probe.cloze.answer_is_last


class Causal:
    """Fits probes to a model that reads from left to right."""

    def __init__(self, tokens: Tokens, prefix: str) -> None:
        self.tokens, self.prefix = tokens, prefix
        self.ids: dict[str, Ids] = {}
        self.bodies: dict[Key, Body | Misfit] = {}

    def read(self, probes: Iterable[Probe]) -> None:
        """Encode what the probes need; may run ahead of :meth:`fit` in a thread of its own."""
        texts = {t: None for probe in probes for t in self._texts(probe) if t not in self.ids}
        closing = self.tokens.n_closing
        for text, ids in zip(texts, self.tokens.encode_many(list(texts)), strict=True):
            self.ids[text] = ids[: len(ids) - closing] if closing else ids

    def fit(self, probes: Iterable[Probe]) -> Mapping[Key, Body | Misfit]:
        """What is fitted of the probes that were read, by :func:`key_of`; all is kept."""
        for probe in probes:
            key = key_of(probe)
            if key not in self.bodies:
                self.bodies[key] = self._fit(probe)
        return self.bodies

    def _texts(self, probe: Probe) -> Iterable[str]:
        cloze = _prefixed(probe.cloze, self.prefix)
        if _is_asked_too_early(probe):
            return
        yield cloze.left
        for answer in (probe.expected, probe.rejected):
            if probe.scoring != "sentence":
                yield cloze.left + cloze.gap_space + answer
            if probe.scoring != "gap":
                yield cloze.fill(answer)

    def _fit(self, probe: Probe) -> Body | Misfit:
        cloze = _prefixed(probe.cloze, self.prefix)
        if _is_asked_too_early(probe):
            return Misfit(NOT_LAST, cloze.fill("▁"))
        # a text's first word is predicted from what stands between documents
        between = self.tokens.between_id
        start: Ids = () if cloze.left or self.ids[""] or between is None else (between,)
        prompt = start + self.ids[cloze.left]
        if not prompt:
            return Misfit(NO_CONTEXT, cloze.fill("▁"))
        asked = _Asked(cloze, cloze.left + cloze.gap_space, probe.scoring, start, prompt)
        expected = self._row(asked, probe.expected)
        if isinstance(expected, Misfit):
            return expected
        rejected = self._row(asked, probe.rejected)
        if isinstance(rejected, Misfit):
            return rejected
        if expected.targets == rejected.targets:
            if expected.ids == rejected.ids and probe.expected != probe.rejected:
                return Misfit(SAME, f"{probe.expected!r} and {probe.rejected!r}")
        elif probe.scoring == "two_prefix":
            return Misfit(AROUND, cloze.fill("▁"))
        n = len(prompt)
        return Body(prompt, n - 1, expected, rejected, expected.ids[n])

    def _row(self, asked: _Asked, answer: str) -> Row | Misfit:
        """The row that scores ``answer``: the word, what follows it, or both."""
        cloze, left, scoring, start, prompt = asked
        text = left + answer if scoring == "gap" else cloze.fill(answer)
        ids = start + self.ids[text]
        given = start + self.ids[left + answer] if scoring == "two_prefix" else prompt
        if ids[: len(given)] != given or given[: len(prompt)] != prompt:
            return Misfit(BOUNDARY, f"{answer!r} in {text!r}")
        said, targets = ids[len(prompt) :], ids[len(given) :]
        if not targets or not said or (not answer.isalnum() and self._is_blank(answer, said)):
            return Misfit(NO_TOKEN, f"{answer!r} tokenises to nothing")
        if not self.tokens.special_ids.isdisjoint(said):
            return Misfit(SPECIAL, f"{answer!r} in {text!r}")
        size = len(ids)
        if size > self.tokens.max_length:
            return Misfit(LONG, f"{size} tokens of {self.tokens.max_length}: {text!r}")
        return Row(ids, tuple(range(len(given) - 1, size - 1)), targets)

    def _is_blank(self, answer: str, ids: Ids) -> bool:
        """Whether only a space is left of ``answer``: some tokenizers drop what cannot be seen."""
        return not any(map(str.isalnum, answer)) and not self.tokens.decode(ids).strip()


class _Asked(NamedTuple):
    """What both answers of a probe have in common: ``left`` is the text up to the answer."""

    cloze: Cloze
    left: str
    scoring: Scoring
    start: Ids
    prompt: Ids


class Masked:
    """Fits probes to a model that answers at a mask."""

    def __init__(self, tokens: Tokens, prefix: str) -> None:
        self.tokens, self.prefix = tokens, prefix
        self.found: dict[tuple[Cloze, str], Answered | Misfit] = {}
        self.bodies: dict[Key, Body | Misfit] = {}

    def read(self, probes: Iterable[Probe]) -> None:
        """Encode what the probes need; may run ahead of :meth:`fit` in a thread of its own."""
        wanted = {
            filled: None
            for probe in probes
            for answer in (probe.expected, probe.rejected)
            if (filled := (_prefixed(probe.cloze, self.prefix), answer)) not in self.found
        }
        self.found.update(zip(wanted, in_place(list(wanted), self.tokens), strict=True))

    def fit(self, probes: Iterable[Probe]) -> Mapping[Key, Body | Misfit]:
        """What is fitted of the probes that were read, by :func:`key_of`; all is kept."""
        for probe in probes:
            key = key_of(probe)
            if key not in self.bodies:
                self.bodies[key] = self._fit(probe)
        return self.bodies

    def _fit(self, probe: Probe) -> Body | Misfit:
        cloze = _prefixed(probe.cloze, self.prefix)
        mask = self.tokens.mask_id
        assert mask is not None  # Tokens has looked
        expected, rejected = self.found[cloze, probe.expected], self.found[cloze, probe.rejected]
        for answered in (expected, rejected):
            if isinstance(answered, Misfit):
                return answered
            if len(answered.answer) > 1 and probe.task == "fact":
                return Misfit(SEVERAL, f"{cloze.fill('▁')!r} with {answered.answer}")
        assert isinstance(expected, Answered)
        assert isinstance(rejected, Answered)
        if (expected.before, expected.after) != (rejected.before, rejected.after):
            return Misfit(AROUND, cloze.fill("▁"))
        if expected.answer == rejected.answer:
            return Misfit(SAME, f"{probe.expected!r} and {probe.rejected!r}")
        ids, at = (*expected.before, mask, *expected.after), len(expected.before)
        rows = [_each_masked(answered, mask) for answered in (expected, rejected)]
        return Body(ids, at, rows[0], rows[1], expected.answer[0])


def _each_masked(answered: Answered, mask: int) -> Row:
    """One row for each piece of the answer, masked while the others are seen."""
    before, answer, after = answered
    rows = []
    for i, piece in enumerate(answer):
        ids = (*before, *answer[:i], mask, *answer[i + 1 :], *after)
        rows.append(Row(ids, (len(before) + i,), (piece,)))
    return replace(rows[0], further=tuple(rows[1:])) if len(rows) > 1 else rows[0]


class Answered(NamedTuple):
    """A filled cloze in ids: before, the answer, after."""

    before: Ids
    answer: Ids
    after: Ids


def in_place(filled: Sequence[tuple[Cloze, str]], tokens: Tokens) -> list[Answered | Misfit]:
    """Each cloze with its answer as one text in ids, taken apart at the answer's tokens."""
    texts = [cloze.fill(answer) for cloze, answer in filled]
    spans = []
    for cloze, answer in filled:
        start = len(cloze.left) + len(cloze.gap_space)
        spans.append(Span(len(cloze.left), start, start + len(answer)))
    encoded = tokens.encode_spans(texts, spans)
    return [_answered(*one, tokens) for one in zip(texts, spans, encoded, strict=True)]


def _answered(text: str, span: Span, spanned: Spanned, tokens: Tokens) -> Answered | Misfit:
    ids, first, last, whole = spanned
    word = text[span.start : span.end]
    answer = ids[first : last + 1]
    if not answer:
        return Misfit(NO_TOKEN, f"{word!r} tokenises to nothing")
    if not whole:
        return Misfit(BOUNDARY, f"{word!r} in {text!r}")
    if not tokens.special_ids.isdisjoint(answer):
        return Misfit(SPECIAL, f"{word!r} in {text!r}")
    if len(ids) > tokens.max_length:
        return Misfit(LONG, f"{len(ids)} tokens of {tokens.max_length}: {text!r}")
    return Answered(ids[:first], answer, ids[last + 1 :])
