"""Protocols: how many edits a step, how many steps, and when each request is asked.

    single          one edit, asked, taken back
    batch:N         N edits in one step, all asked, taken back
    sequence:N      N steps of one edit; request i is asked after step i (immediate) and after the
                    last step (retained)
    sequence:N/B    the same in N/B steps of B edits

A result cannot be read without its protocol, so it is a value that every row of a log carries.
Text only: nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from kn_bench.measure.ranges import COUNT

Name = Literal["single", "batch", "sequence"]
Moment = Literal["immediate", "retained"]
"""Right after the step that made the edit, or after the last step of the sequence."""

_TEXT = re.compile(r"(batch|sequence):([1-9]\d*)(?:/([1-9]\d*))?")
_SLUG = re.compile(r"(batch|sequence)_(\d+)(?:_(\d+))?\.(\d+)\.(immediate|retained)")
EXPECTED = "expected single, batch:N, sequence:N or sequence:N/B, such as sequence:100/10"


@dataclass(frozen=True, slots=True, order=True)
class Protocol:
    """(edits a step, steps, restored or kept, when each request is asked).

    Attributes:
        name: ``single`` and ``batch`` are restored after their one step, ``sequence`` is kept.
        edits: edits that the model holds after the last step.
        per_step: edits a step; divides ``edits``.
    """

    name: Name = "single"
    edits: int = 1
    per_step: int = 1

    def __str__(self) -> str:
        if self.name == "single":
            return "single"
        several = f"/{self.per_step}" if self.name == "sequence" and self.per_step > 1 else ""
        return f"{self.name}:{self.edits}{several}"

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.edits // self.per_step

    @property
    def asked(self) -> tuple[Moment, ...]:
        """When each request is asked."""
        return ("immediate", "retained") if self.name == "sequence" else ("immediate",)

    def in_words(self) -> str:
        """Describe the protocol in a sentence without a full stop."""
        if self.name == "single":
            return "one edit at a time, asked right after it and taken back"
        if self.name == "batch":
            return f"{self.edits} edits in one step, all asked right after it and taken back"
        step = "one edit" if self.per_step == 1 else f"{self.per_step} edits"
        return (
            f"{self.edits} edits in {self.steps} steps of {step}, kept; immediate: request i right "
            "after its step, retained: every request after the last step"
        )


SINGLE = Protocol()


def parse_protocol(text: str) -> Protocol:
    """Parse a protocol such as ``sequence:100/10``.

    Raises:
        ValueError: for any other text, or if the edits do not fill whole steps.
    """
    if text == "single":
        return SINGLE
    match = _TEXT.fullmatch(text)
    if match is None or (match[1] == "batch" and match[3]):
        raise ValueError(f"{text!r}: {EXPECTED}")
    edits, per_step = int(match[2]), int(match[3] or 1)
    if match[1] == "batch":
        return Protocol("batch", edits, edits)
    if edits % per_step:
        raise ValueError(
            f"{text!r}: expected N edits in whole steps of B; {edits} is not a multiple of "
            f"{per_step}"
        )
    return Protocol("sequence", edits, per_step)


@dataclass(frozen=True, slots=True, order=True)
class Occasion:
    """When a probe was asked: part of the identity of every row.

    Attributes:
        protocol: as text, such as ``sequence:100``.
        sequence: which of the repetitions, from 0.
        asked: right after the step, or after the last one.
    """

    protocol: str = "single"
    sequence: int = field(default=0, metadata=COUNT)
    asked: Moment = "immediate"

    @property
    def slug(self) -> str:
        """As in a test id: ``sequence_100.0.retained``; "" for ``single``."""
        if self.protocol == "single":
            return ""
        name = self.protocol.replace(":", "_").replace("/", "_")
        return f"{name}.{self.sequence}.{self.asked}"


ONCE = Occasion()
"""The only occasion of ``single``."""


def occasion_of(slug: str) -> Occasion:
    """Parse the occasion in a test id; see :attr:`Occasion.slug`.

    Raises:
        ValueError: for any other text.
    """
    if not slug:
        return ONCE
    match = _SLUG.fullmatch(slug)
    if match is None:
        raise ValueError(f"{slug!r}: expected an occasion such as sequence_100.0.retained")
    name, edits, per_step, number, asked = match.groups()
    protocol = f"{name}:{edits}" + (f"/{per_step}" if per_step else "")
    return Occasion(protocol, int(number), "retained" if asked == "retained" else "immediate")


def checkpoints(steps: int) -> Iterator[int]:
    """Yield 1, 2, 5, 10, 20, 50, ... and the last of ``steps``."""
    scale = 1
    while scale < steps:
        yield from (scale * first for first in (1, 2, 5) if scale * first < steps)
        scale *= 10
    if steps:
        yield steps
