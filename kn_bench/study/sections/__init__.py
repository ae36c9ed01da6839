"""The sections of a study, in order.

Each is a module or a small package with ``run(material) -> Section``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from kn_bench.study.material import Material
from kn_bench.study.page import Section
from kn_bench.study.runner import Part


class SectionEntry(NamedTuple):
    """A section in this package.

    Attributes:
        module: its module.
        title: its title.
        on_groups: whether it works on the groups of the material, and so says what is left out.
        on_neurons: whether it edits the groups' neurons, and so says where others stand in.
    """

    module: str
    title: str
    on_groups: bool = True
    on_neurons: bool = False


PAPER = {
    "determiners": SectionEntry("determiners", "Which neurons do determiners share?"),
    "levels": SectionEntry("levels", "Is syntax as localised as facts?"),
    "modifiers": SectionEntry(
        "modifiers", "Which words change when a number neuron is suppressed?"
    ),
    "overturn": SectionEntry("overturn", "Do shifts overturn answers?", on_neurons=True),
    "tracing": SectionEntry("tracing", "Where does causal tracing point?", on_groups=False),
    "generations": SectionEntry("generations", "What does an edited model say?", on_groups=False),
    "invariance": SectionEntry(
        "invariance", "Do edits reach the inverse and the synonym?", on_groups=False
    ),
}
"""The sections that correspond to the paper's figures."""

CONTROLS = {
    "matched": SectionEntry(
        "matched", "Control 1: do random neurons do the same?", on_neurons=True
    ),
    "dose": SectionEntry("dose", "Control 2: how many neurons hold an answer?"),
    "selectivity": SectionEntry(
        "selectivity", "Control 3: what else do the neurons carry?", on_neurons=True
    ),
    "erasing": SectionEntry(
        "erasing", "Control 4: is the fact gone, or the model?", on_neurons=True
    ),
    "choice": SectionEntry("choice", "Control 5: does the attribution matter?"),
    "place": SectionEntry(
        "place", "Control 6: does the place of the edit matter?", on_neurons=True
    ),
    "direction": SectionEntry(
        "direction", "Control 7: is it easier to make right or wrong?", on_groups=False
    ),
    "activators": SectionEntry(
        "activators", "Control 8: what makes a knowledge neuron fire?", on_neurons=True
    ),
}
SECTIONS = {**PAPER, **CONTROLS}


def parts(names: Sequence[str] | None = None) -> list[Part]:
    """Return the sections called ``names`` (None for all), in the study's order.

    Raises:
        ValueError: for an unknown name.
    """
    for name in names or ():
        if name not in SECTIONS:
            raise ValueError(f"section {name!r}: expected one of {', '.join(SECTIONS)}")
    return [_part(name) for name in SECTIONS if names is None or name in names]


def _part(name: str) -> Part:
    entry = SECTIONS[name]
    here = Path(__file__).parent
    sources = sorted([*here.glob(f"{entry.module}.py"), *here.glob(f"{entry.module}/*.py")])
    return Part(name, entry.title, partial(_run, entry), tuple(sources))


def _run(entry: SectionEntry, material: Material) -> Section:
    # imported when it is run: help on the command line needs none of it
    section: Section = import_module(f"{__name__}.{entry.module}").run(material)
    if entry.on_groups:
        section = replace(section, notes=(*section.notes, *material.left_out))
    if entry.on_neurons:
        section = replace(section, notes=(*section.notes, *material.without_neurons))
    return section
