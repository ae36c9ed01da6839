"""m of NAS: the norm that optimised targets have on the unedited model, measured once a model.

The published code takes the 95 % trimmed mean over 1,000 solves of MultiCounterFact; here the facts
are the package's own, in an order drawn by the seed of the contexts. The number is kept on disk, by
everything that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os

import torch
from filelock import FileLock

from kn_bench.cases import sources
from kn_bench.cases.sampling import stable_hash
from kn_bench.editing.family import ClosedFormSettings
from kn_bench.editing.rome.problem import ValueProblem
from kn_bench.editing.rome.remembered import read_requests, values_of
from kn_bench.model.cache_folder import cache_folder
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.ragged import Place

TRIMMED = 0.025
"""Share of the norms that is left out at either end."""


def measured_norm(
    lm: LanguageModel, settings: ClosedFormSettings, solves: int, *, place: Place = "block"
) -> float:
    """Return the trimmed mean of |v*| over many targets of the unedited model.

    Args:
        settings: of the optimisation, and the layers, of which the last is asked.
        solves: facts whose targets are optimised; all there are, where they are fewer.
        place: where delta stands.

    Raises:
        NotApplicable: on a masked model.
        ValueError: where no fact can be read.
    """
    free = settings.value_settings
    assert not free.norm_anchor, "a norm that is anchored cannot be measured"
    layer, lengths = settings.layers[-1], settings.context_template_length_params
    asked = (free, layer, place, lengths, settings.context_seed, solves)
    text = json.dumps([lm.original_hash, lm.behaviour_hash, repr(asked), lm.device.type])
    name = hashlib.sha256(text.encode()).hexdigest()[:32]

    def measured() -> float:
        from scipy.stats import trim_mean  # takes a second to be imported

        facts = [case for case in sources.load("embedded").cases if case.task == "fact"]
        facts.sort(key=lambda case: stable_hash(settings.context_seed, case.id))
        requests = [case.request for case in facts[:solves]]
        with lm.unedited():
            read = read_requests(lm, requests, lengths=lengths, seed=settings.context_seed)
            problems = [problem for problem in read if isinstance(problem, ValueProblem)]
            if not problems:
                raise ValueError(f"{lm.name}: none of {len(requests)} facts can be read for nas")
            values = values_of(lm, layer, problems, free, place=place)
        norms = torch.stack([value.v_site.norm() for value in values.values()])
        return float(trim_mean(norms.double().cpu().numpy(), TRIMMED))

    def stored() -> float:
        folder = cache_folder() / "norm_anchors"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.json"
        with FileLock(folder / f"{name}.lock"):  # workers of one run would all measure it
            if not path.is_file():
                fresh = path.with_suffix(f".{os.getpid()}")
                fresh.write_text(json.dumps(measured()), encoding="utf-8")
                fresh.replace(path)
            return float(json.loads(path.read_text(encoding="utf-8")))

    return lm.memo.get(("norm anchor", name), stored, original=True)
