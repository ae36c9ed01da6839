"""The measures of every group, with and without the cap, and their averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kn_bench.cases.sampling import stable_hash
from kn_bench.localise.groups import Profile
from kn_bench.localise.locating import Locating
from kn_bench.localise.measures import Localisation, Measure, localisation
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.study.material import METHODS, Material
from kn_bench.study.page import NothingToShow

CAPPED, UNCAPPED = Locating(), Locating(capped=False)
MEASURES = {
    "n_neurons": "|KN|",
    "tau": "tau",
    "r1_squared": "R1²",
    "attribution_share": "share of attribution",
    "participation_ratio": "participation ratio",
}
SHARES = ("tau", "attribution_share")
"""Measures from 0 to 1, whose means have an interval also where all groups agree."""


@dataclass(frozen=True)
class GroupLevels:
    """One group's measures under one attribution, with and without the cap."""

    profile: Profile
    method: str
    capped: Localisation
    uncapped: Localisation


def measure(material: Material) -> list[GroupLevels]:
    """Measure all groups of two prompts or more, by integrated gradients.

    Raises:
        NothingToShow: if there are none.
    """
    group_levels = [
        levels
        for profile in material.profiles
        if len(profile.encoded) > 1
        for levels in levels_of(
            material, profile, METHODS[:1], resamples=material.settings.resamples
        )
    ]
    if not group_levels:
        raise NothingToShow("No fact or class has two prompts that fit the model.")
    return group_levels


def levels_of(
    material: Material, profile: Profile, methods: Sequence[str], resamples: int
) -> list[GroupLevels]:
    group_levels = []
    # of its own for each group: means of their nulls would share what one seed draws
    seed = stable_hash("levels", material.settings.seed, profile.group.id)
    for method in methods:
        scores = material.scores(profile, method)
        unrelated = _unrelated(material, profile) if method == METHODS[0] else None
        both = [
            localisation(
                scores,
                locating=locating,
                unrelated=unrelated,
                resamples=resamples,
                draws=material.settings.permutations,
                seed=seed,
            )
            for locating in (CAPPED, UNCAPPED)
        ]
        group_levels.append(GroupLevels(profile, method, *both))
    return group_levels


def _unrelated(material: Material, profile: Profile) -> torch.Tensor | None:
    """Return one prompt per group of the task's other relations, for tau's null to draw from."""
    others = [
        other.scores[:1]
        for other in material.of_task(profile.group.task)
        if other.group.relation != profile.group.relation
    ]
    return torch.cat(others) if others else None


def value(localised: Localisation, name: str) -> Measure:
    """Return a measure by its name."""
    named: Measure = getattr(localised, name)
    return named


def averaged(measured: Sequence[GroupLevels], name: str, *, capped: bool = True) -> Interval:
    """Return the mean of a measure over groups, with its interval."""
    values = [
        value(levels.capped if capped else levels.uncapped, name).value for levels in measured
    ]
    # where 2 to 5 neurons are not reached, the published rule may move tau below 0
    share = name in SHARES and not any(v < 0 or v > 1 for v in values)
    return mean_interval(
        values,
        [levels.profile.group.id for levels in measured],
        bounds=(0.0, 1.0) if share else None,
    )


def null_of(measured: Sequence[GroupLevels], name: str) -> float:
    nulls = [value(levels.capped, name).null for levels in measured]
    return float(np.nanmean(nulls)) if np.isfinite(nulls).any() else float("nan")
