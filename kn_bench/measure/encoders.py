"""Probes in ids, in place: a causal model's prompt and answers, a masked model's gap.

Both fitters keep the texts they have encoded and what they made of them, so that what many cases
share is done once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kn_bench.cases.case import HALF_A_CHARACTER, Cloze, Probe, Scoring, Task
from kn_bench.measure.encoded import (
    AROUND,
    BOUNDARY,
    LONG,
    NO_CONTEXT,
    NO_ROOM,
    NO_TOKEN,
    NOT_LAST,
    SAME,
    SEVERAL,
    SPECIAL,
    AnswerRow,
    Ids,
    Unencodable,
)
from kn_bench.model.tokens import Span, Spanned, Tokens

Key = tuple[Cloze, str, str, Scoring, Task]
Filled = tuple[Cloze, str]
"""A cloze with an answer."""


class Body(NamedTuple):
    """What is fitted of a probe; shared by all probes that ask the same."""

    prompt_ids: Ids
    answer_position: int
    expected: AnswerRow
    rejected: AnswerRow
    first_expected: int


def key_of(probe: Probe) -> Key:
    """All that the ids of a probe depend on."""
    return (probe.cloze, probe.expected, probe.rejected, probe.scoring, probe.task)


def encoder_for(tokens: Tokens, prefix: str, budget: int = 1) -> Causal | Masked:
    """Return the encoder of the model's kind, for prompts with ``prefix`` in front.

    Args:
        budget: tokens that a causal model's free-running answer may take; a prompt that leaves no
            room for them is not encoded.
    """
    if tokens.kind == "masked":
        return Masked(tokens, prefix)
    return Causal(tokens, prefix, budget)


def encode_one(encoder: Causal | Masked, probe: Probe) -> Body | Unencodable:
    """What ``fitter`` makes of one probe."""
    asked, texts = encoder.claim([probe])
    encoder.encode(texts)
    return encoder.fit(asked)[key_of(probe)]


class Asked(NamedTuple):
    """What is asked by all probes with one key.

    Attributes:
        cloze: with the prefix in front.
        answers: the expected and the rejected one.
        texts: with either, for a causal model: up to the answer, or whole.
        given: texts up to the answer, where what follows is scored given it; else empty.
    """

    key: Key
    cloze: Cloze
    answers: tuple[str, str]
    scoring: Scoring
    task: Task
    texts: tuple[str, ...] = ()
    given: tuple[str, ...] = ()

    @property
    def too_early(self) -> bool:
        """Whether more of a fact's question follows its answer (a pair's scoring allows that)."""
        return self.task == "fact" and not self.cloze.answer_is_last


class _Encoder:
    """What both kinds share: each key is fitted once, each text encoded once.

    What is claimed may be encoded in another thread, while more is claimed.
    """

    def __init__(self, tokens: Tokens, prefix: str) -> None:
        self.tokens, self.prefix = tokens, prefix
        self.keys: set[Key] = set()
        self.texts: set[Any] = set()
        self.bodies: dict[Key, Body | Unencodable] = {}

    def claim(self, probes: Iterable[Probe]) -> tuple[Sequence[Asked], Sequence[Any]]:
        """What the probes ask that was not asked before, and which texts of it to encode."""
        new = [key for key in dict.fromkeys(map(key_of, probes)) if key not in self.keys]
        self.keys.update(new)
        asked = []
        for key in new:
            if _is_whole(key):
                asked.append(self._asked(key))
            else:  # no tokenizer takes it
                self.bodies[key] = Unencodable(HALF_A_CHARACTER, ascii(key[0].fill(key[1])))
        texts = dict.fromkeys(text for one in asked for text in self._wanted(one))
        unknown = [text for text in texts if text not in self.texts]
        self.texts.update(unknown)
        return asked, unknown

    def encode(self, texts: Sequence[Any]) -> None:
        """Encode what was claimed, before it is fitted."""
        raise NotImplementedError

    def fit(self, asked: Iterable[Asked]) -> Mapping[Key, Body | Unencodable]:
        """All that was fitted so far, ``asked`` included."""
        self.bodies.update((one.key, self._encode(one)) for one in asked)
        return self.bodies

    def _asked(self, key: Key) -> Asked:
        cloze, expected, rejected, scoring, task = key
        if self.prefix:
            cloze = Cloze(f"{self.prefix} {cloze.left}".rstrip(), cloze.right)
        answers = expected, rejected
        return Asked(key, cloze, answers, scoring, task, *self._texts(cloze, answers, scoring))

    def _texts(
        self, cloze: Cloze, answers: tuple[str, str], scoring: Scoring
    ) -> tuple[tuple[str, ...], ...]:
        """``texts`` and ``given`` of what is asked, where the kind of model needs them."""
        return ()

    def _wanted(self, asked: Asked) -> Iterable[Any]:
        """What is to be encoded."""
        raise NotImplementedError

    def _encode(self, asked: Asked) -> Body | Unencodable:
        raise NotImplementedError


class Causal(_Encoder):
    """Fits probes to a model that reads from left to right."""

    def __init__(self, tokens: Tokens, prefix: str, budget: int = 1) -> None:
        super().__init__(tokens, prefix)
        self.budget = budget
        self.ids: dict[str, Ids] = {}

    def _texts(
        self, cloze: Cloze, answers: tuple[str, str], scoring: Scoring
    ) -> tuple[tuple[str, ...], ...]:
        left = cloze.left + cloze.gap_space
        up_to = left + answers[0], left + answers[1]
        if scoring == "gap":
            return up_to, ()
        whole = cloze.fill(answers[0]), cloze.fill(answers[1])
        return whole, () if scoring == "sentence" else up_to

    def _wanted(self, asked: Asked) -> Iterable[str]:
        return () if asked.too_early else (asked.cloze.left, *asked.texts, *asked.given)

    def encode(self, texts: Sequence[str]) -> None:
        closing = self.tokens.n_closing
        for text, ids in zip(texts, self.tokens.encode_many(texts), strict=True):
            self.ids[text] = ids[: len(ids) - closing] if closing else ids

    def _encode(self, asked: Asked) -> Body | Unencodable:
        cloze = asked.cloze
        if asked.too_early:
            return Unencodable(NOT_LAST, cloze.fill("▁"))
        # a text's first word is predicted from what stands between documents
        between = self.tokens.between_id
        start: Ids = () if cloze.left or self.ids[""] or between is None else (between,)
        prompt = start + self.ids[cloze.left]
        if not prompt:
            return Unencodable(NO_CONTEXT, cloze.fill("▁"))
        expected = self._row(asked, 0, start, prompt)
        if isinstance(expected, Unencodable):
            return expected
        rejected = self._row(asked, 1, start, prompt)
        if isinstance(rejected, Unencodable):
            return rejected
        if expected.targets == rejected.targets:
            if expected.ids == rejected.ids and asked.answers[0] != asked.answers[1]:
                return Unencodable(SAME, _both(asked))
        elif asked.scoring == "two_prefix":
            return Unencodable(AROUND, cloze.fill("▁"))
        n = len(prompt)
        # the last token of an answer is read and never fed
        if n + self.budget - 1 > self.tokens.max_length:
            detail = f"{n} tokens and {self.budget} of the answer, of {self.tokens.max_length}"
            return Unencodable(NO_ROOM, f"{detail}: {cloze.fill('▁')!r}")
        return Body(prompt, n - 1, expected, rejected, expected.ids[n])

    def _row(self, asked: Asked, which: int, start: Ids, prompt: Ids) -> AnswerRow | Unencodable:
        """The row that scores one answer: the word, what follows it, or both."""
        text, answer = asked.texts[which], asked.answers[which]
        ids = start + self.ids[text]
        n, size = len(prompt), len(ids)
        if ids[:n] != prompt:
            return Unencodable(BOUNDARY, f"{answer!r} in {text!r}")
        said = targets = ids[n:]
        if asked.given:
            given = start + self.ids[asked.given[which]]
            n = len(given)
            if ids[:n] != given or given[: len(prompt)] != prompt:
                return Unencodable(BOUNDARY, f"{answer!r} in {text!r}")
            targets = ids[n:]
        if not targets or (not answer.isalnum() and self._is_blank(answer, said)):
            return Unencodable(NO_TOKEN, f"{answer!r} tokenises to nothing")
        if not self.tokens.special_ids.isdisjoint(said):
            return Unencodable(SPECIAL, f"{answer!r} in {text!r}")
        if size > self.tokens.max_length:
            return Unencodable(LONG, f"{size} tokens of {self.tokens.max_length}: {text!r}")
        return AnswerRow(ids, tuple(range(n - 1, size - 1)), targets)

    def _is_blank(self, answer: str, ids: Ids) -> bool:
        """Whether only a space is left of ``answer``: some tokenizers drop what cannot be seen."""
        return not any(map(str.isalnum, answer)) and not self.tokens.decode(ids).strip()


class Masked(_Encoder):
    """Fits probes to a model that answers at a mask."""

    def __init__(self, tokens: Tokens, prefix: str) -> None:
        super().__init__(tokens, prefix)
        self.found: dict[Filled, Answered | Unencodable] = {}

    def _wanted(self, asked: Asked) -> Iterable[Filled]:
        return [(asked.cloze, answer) for answer in asked.answers]

    def encode(self, texts: Sequence[Filled]) -> None:
        self.found.update(zip(texts, in_place(texts, self.tokens), strict=True))

    def _encode(self, asked: Asked) -> Body | Unencodable:
        cloze, (right, wrong), mask = asked.cloze, asked.answers, self.tokens.mask_id
        assert mask is not None  # Tokens has looked
        expected, rejected = self.found[cloze, right], self.found[cloze, wrong]
        for answered in (expected, rejected):
            if isinstance(answered, Unencodable):
                return answered
            if len(answered.answer) > 1 and asked.task == "fact":
                return Unencodable(SEVERAL, f"{cloze.fill('▁')!r} with {answered.answer}")
        assert isinstance(expected, Answered)
        assert isinstance(rejected, Answered)
        before, after = expected.before, expected.after
        if before != rejected.before or after != rejected.after:
            return Unencodable(AROUND, cloze.fill("▁"))
        if expected.answer == rejected.answer:
            return Unencodable(SAME, _both(asked))
        ids = (*before, mask, *after)
        rows = _each_masked(expected, mask, ids), _each_masked(rejected, mask, ids)
        return Body(ids, len(before), rows[0], rows[1], expected.answer[0])


def _is_whole(key: Key) -> bool:
    """Return whether all texts of a probe can be written as UTF-8."""
    cloze, expected, rejected, *_ = key
    try:
        for text in (cloze.left, cloze.right, expected, rejected):
            text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _both(asked: Asked) -> str:
    return "{!r} and {!r}".format(*asked.answers)


def _each_masked(answered: Answered, mask: int, one: Ids) -> AnswerRow:
    """A row for each piece of the answer, masked while others are seen; ``one`` has one mask."""
    before, answer, after = answered
    if len(answer) == 1:
        return AnswerRow(one, (len(before),), answer)
    rows = []
    for i, piece in enumerate(answer):
        ids = (*before, *answer[:i], mask, *answer[i + 1 :], *after)
        rows.append(AnswerRow(ids, (len(before) + i,), (piece,)))
    return rows[0]._replace(further=tuple(rows[1:]))


class Answered(NamedTuple):
    """A filled cloze in ids: before, the answer, after."""

    before: Ids
    answer: Ids
    after: Ids


def in_place(filled: Sequence[Filled], tokens: Tokens) -> list[Answered | Unencodable]:
    """Each cloze with its answer as one text in ids, taken apart at the answer's tokens."""
    texts = [cloze.fill(answer) for cloze, answer in filled]
    spans = []
    for cloze, answer in filled:
        start = len(cloze.left) + len(cloze.gap_space)
        spans.append(Span(len(cloze.left), start, start + len(answer)))
    encoded = tokens.encode_spans(texts, spans)
    return [_answered(*one, tokens) for one in zip(texts, spans, encoded, strict=True)]


def _answered(text: str, span: Span, spanned: Spanned, tokens: Tokens) -> Answered | Unencodable:
    ids, first, last, whole = spanned
    word = text[span.start : span.end]
    answer = ids[first : last + 1]
    if not answer:
        return Unencodable(NO_TOKEN, f"{word!r} tokenises to nothing")
    if not whole:
        return Unencodable(BOUNDARY, f"{word!r} in {text!r}")
    if not tokens.special_ids.isdisjoint(answer):
        return Unencodable(SPECIAL, f"{word!r} in {text!r}")
    if len(ids) > tokens.max_length:
        return Unencodable(LONG, f"{len(ids)} tokens of {tokens.max_length}: {text!r}")
    return Answered(ids[:first], answer, ids[last + 1 :])
