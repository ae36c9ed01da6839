"""Render a study as one self-contained HTML file, readable with or without JavaScript."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kn_bench.model.source import dtype_name
from kn_bench.study.material import Material
from kn_bench.study.writing import WrittenSection, data_uri

TEMPLATE = Path(__file__).parent / "page.html.j2"


def index_html(material: Material, sections: Sequence[WrittenSection], folder: Path) -> str:
    """Return the page with all ``sections`` and with the figures in ``folder`` embedded."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    figures = {
        (section.id, figure.name): data_uri(folder / section.id / f"{figure.name}.svg")
        for section in sections
        for figure in section.figures
    }
    lm = material.lm
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        sections=sections,
        uri=lambda section, figure: figures[section.id, figure.name],
        model=lm.name,
        facts=[
            ("kind", lm.architecture.kind),
            ("family", lm.architecture.family),
            ("layers", lm.n_layers),
            ("neurons a layer", lm.d_mlp),
            ("precision", dtype_name(lm.dtype)),
            ("weights", lm.content_hash[:12]),
            ("cases", len(material.cases)),
            ("relations and paradigms", len({case.relation for case in material.cases})),
            ("seed", material.settings.seed),
            ("computed in", f"{sum(section.seconds for section in sections):.0f} s"),
        ],
    )
