"""Encode probes: a causal model's prompt and answers, a masked model's gap.

Both encoders keep the texts they have encoded and the results, so that what many cases share is
encoded once.
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
    """The ids of a probe, shared by all probes with the same question."""

    prompt_ids: Ids
    answer_position: int
    expected: AnswerRow
    rejected: AnswerRow
    first_expected: int


def key_of(probe: Probe) -> Key:
    """Return all that the ids of a probe depend on."""
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
    """Encode one probe with ``encoder``."""
    asked, texts = encoder.claim([probe])
    encoder.encode(texts)
    return encoder.fit(asked)[key_of(probe)]


class UniqueQuestion(NamedTuple):
    """The question shared by all probes with one key.

    Attributes:
        cloze: the cloze with the prefix in front.
        answers: the expected and the rejected answer.
        texts: for a causal model, the text with either answer: up to the answer, or whole.
        given: the texts up to the answer, if what follows is scored given the answer; else empty.
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
    """The base of both encoders: each key is fitted once, each text encoded once.

    Claimed texts may be encoded in another thread while more are claimed.
    """

    def __init__(self, tokens: Tokens, prefix: str) -> None:
        self.tokens, self.prefix = tokens, prefix
        self.keys: set[Key] = set()
        self.texts: set[Any] = set()
        self.bodies: dict[Key, Body | Unencodable] = {}

    def claim(self, probes: Iterable[Probe]) -> tuple[Sequence[UniqueQuestion], Sequence[Any]]:
        """Return the new questions among ``probes``, and their texts that are not encoded yet."""
        new = [key for key in dict.fromkeys(map(key_of, probes)) if key not in self.keys]
        self.keys.update(new)
        asked = []
        for key in new:
            if _is_whole(key):
                asked.append(self._asked(key))
            else:  # no tokenizer takes it
                self.bodies[key] = Unencodable(HALF_A_CHARACTER, ascii(key[0].fill(key[1])))
        texts = dict.fromkeys(text for question in asked for text in self._wanted(question))
        unknown = [text for text in texts if text not in self.texts]
        self.texts.update(unknown)
        return asked, unknown

    def encode(self, texts: Sequence[Any]) -> None:
        """Encode claimed texts; call this before :meth:`fit`."""
        raise NotImplementedError

    def fit(self, asked: Iterable[UniqueQuestion]) -> Mapping[Key, Body | Unencodable]:
        """Fit ``asked``, and return all that was fitted so far."""
        self.bodies.update((question.key, self._encode(question)) for question in asked)
        return self.bodies

    def _asked(self, key: Key) -> UniqueQuestion:
        cloze, expected, rejected, scoring, task = key
        if self.prefix:
            cloze = _behind(self.prefix, cloze)
        answers = expected, rejected
        return UniqueQuestion(
            key, cloze, answers, scoring, task, *self._texts(cloze, answers, scoring)
        )

    def _texts(
        self, cloze: Cloze, answers: tuple[str, str], scoring: Scoring
    ) -> tuple[tuple[str, ...], ...]:
        """Return ``texts`` and ``given`` of a question, if the kind of model needs them."""
        return ()

    def _wanted(self, asked: UniqueQuestion) -> Iterable[Any]:
        """Return the texts of a question that must be encoded."""
        raise NotImplementedError

    def _encode(self, asked: UniqueQuestion) -> Body | Unencodable:
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

    def _wanted(self, asked: UniqueQuestion) -> Iterable[str]:
        return () if asked.too_early else (asked.cloze.left, *asked.texts, *asked.given)

    def encode(self, texts: Sequence[str]) -> None:
        closing = self.tokens.n_closing
        for text, ids in zip(texts, self.tokens.encode_many(texts), strict=True):
            self.ids[text] = ids[: len(ids) - closing] if closing else ids

    def _encode(self, asked: UniqueQuestion) -> Body | Unencodable:
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

    def _row(
        self, asked: UniqueQuestion, which: int, start: Ids, prompt: Ids
    ) -> AnswerRow | Unencodable:
        """Return the row that scores one answer: the word, what follows it, or both."""
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
        """Return whether ``answer`` decodes to space: some tokenizers drop invisible characters."""
        return not any(map(str.isalnum, answer)) and not self.tokens.decode(ids).strip()


class Masked(_Encoder):
    """Fits probes to a model that answers at a mask."""

    def __init__(self, tokens: Tokens, prefix: str) -> None:
        super().__init__(tokens, prefix)
        self.answered: dict[Filled, Answered | Unencodable] = {}

    def _wanted(self, asked: UniqueQuestion) -> Iterable[Filled]:
        return [(asked.cloze, answer) for answer in asked.answers]

    def encode(self, texts: Sequence[Filled]) -> None:
        self.answered.update(zip(texts, in_place(texts, self.tokens), strict=True))

    def _encode(self, asked: UniqueQuestion) -> Body | Unencodable:
        cloze, (right, wrong), mask = asked.cloze, asked.answers, self.tokens.mask_id
        assert mask is not None  # Tokens has looked
        expected, rejected = self.answered[cloze, right], self.answered[cloze, wrong]
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


def _behind(prefix: str, cloze: Cloze) -> Cloze:
    if cloze.left:
        return cloze._replace(left=f"{prefix} {cloze.left}")
    gap = None if cloze.gap is None else " "
    return cloze._replace(left=prefix.rstrip(), gap=gap)


def _is_whole(key: Key) -> bool:
    """Return whether all texts of a probe can be written as UTF-8."""
    cloze, expected, rejected, *_ = key
    try:
        for text in (cloze.left, cloze.right, expected, rejected):
            text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _both(asked: UniqueQuestion) -> str:
    return "{!r} and {!r}".format(*asked.answers)


def _each_masked(answered: Answered, mask: int, masked_ids: Ids) -> AnswerRow:
    """Return a row per token of the answer, masked alone; ``masked_ids`` has a single mask."""
    before, answer, after = answered
    if len(answer) == 1:
        return AnswerRow(masked_ids, (len(before),), answer)
    rows = []
    for i, piece in enumerate(answer):
        ids = (*before, *answer[:i], mask, *answer[i + 1 :], *after)
        rows.append(AnswerRow(ids, (len(before) + i,), (piece,)))
    return rows[0]._replace(further=tuple(rows[1:]))


class Answered(NamedTuple):
    """The ids of a filled cloze: before the answer, the answer, after it."""

    before: Ids
    answer: Ids
    after: Ids


def in_place(filled: Sequence[Filled], tokens: Tokens) -> list[Answered | Unencodable]:
    """Encode each cloze with its answer as one text, and split the ids at the answer."""
    texts = [cloze.fill(answer) for cloze, answer in filled]
    spans = []
    for cloze, answer in filled:
        start = len(cloze.left) + len(cloze.gap_space)
        spans.append(Span(len(cloze.left), start, start + len(answer)))
    encoded = tokens.encode_spans(texts, spans)
    return [_answered(*parts, tokens) for parts in zip(texts, spans, encoded, strict=True)]


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
