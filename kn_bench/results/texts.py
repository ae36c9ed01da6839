"""What was asked, as text: the requests and prompts of a run's cases, beside its log.

The log names a probe by its id; here stands the prompt behind it, once a run and not once a method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kn_bench.cases.case import Case, Task
from kn_bench.cases.cloze import PLACE, Cloze
from kn_bench.results.codec import FormatError, decode, encode
from kn_bench.results.files import StoreError, atomically

FILE = "cases.jsonl"


@dataclass(frozen=True, slots=True)
class ProbeText:
    """A probe's prompt: the text before and after the answer, as :func:`with_gap` reads them."""

    id: str
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class CaseText:
    """A case's request and prompts; fields as in :class:`kn_bench.cases.case.EditRequest`.

    ``prompt`` ends with ``[Y]`` also where its own end says that no space follows.
    """

    id: str
    task: Task
    relation: str
    source: str
    subject: str
    prompt: str
    suffix: str
    target_true: str
    target_new: str
    probes: tuple[ProbeText, ...]


def text_of(case: Case) -> CaseText:
    """Return what is asked of ``case``."""
    request = case.request
    prompt, suffix = request.prompt, request.suffix
    if request.task == "fact":
        prompt, suffix = Cloze.parse(prompt, suffix).marked
    return CaseText(
        case.id,
        case.task,
        case.relation,
        case.source,
        request.subject,
        prompt,
        suffix,
        request.target_true,
        request.target_new,
        tuple(ProbeText(p.id, *p.cloze.marked) for p in case.probes),
    )


def with_gap(left: str, right: str, gap: str = "___") -> str:
    """Return a question with ``gap`` for its answer: after a space, or in place of ``[Y]``."""
    text = left.removesuffix(PLACE)
    return f"{left} {gap}{right}" if text == left else f"{text}{gap}{right}"


def write_texts(folder: Path, cases: Iterable[Case]) -> None:
    """Write what is asked of ``cases`` into a run's folder, a line a case.

    Raises:
        StoreError: when it cannot be written.
    """
    with atomically(folder / FILE) as file:
        for case in cases:
            file.write(encode(text_of(case)).encode() + b"\n")


def read_texts(folder: Path) -> Iterator[CaseText]:
    """Yield what a run asked; nothing for a run from before this was written down.

    Raises:
        StoreError: for a file that cannot be read, or a line that holds something else.
    """
    path = folder / FILE
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield decode(CaseText, line, source=f"{path}, line {number}")
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    except FormatError as error:
        raise StoreError(str(error)) from None


def join_texts(folders: Iterable[Path], target: Path) -> None:
    """Write what several shards asked into the folder of the run they make, each case once.

    Raises:
        StoreError: when a file cannot be read or written.
    """
    by_id = {case.id: case for folder in folders for case in read_texts(folder)}
    with atomically(target / FILE) as file:
        for case in by_id.values():
            file.write(encode(case).encode() + b"\n")
