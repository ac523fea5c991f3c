"""Open a network: what its units see. One kind of probe a file, `cli/probe_KIND.py`."""

from __future__ import annotations

KINDS: dict[str, str] = {
    "receptive-field": "how much of the picture each layer's units see",
    "top": "the strongest pictures of every unit, cut to its field, beside their projections",
    "class-units": "the units that speak for a class, and what each adds to a logit",
    "evolution": "how units and layers form over the checkpoints of a run",
    "invariance": "how far features move while a picture is shifted, enlarged and turned",
    "occlusion": "what hiding each place costs: the class, the strongest map, the most probable class",
    "correspondence": "whether the same part, hidden in several pictures, changes a layer alike",
    "filters": "the first layer's filters, dead units of every layer, what the second layer sees",
    "ablation": "which classes fall when a unit or layer is silenced; variants that were trained, side by side",
}
HELP = f"""Open a network: what its units see, where, and what they are for. Every probe writes a folder: report.html with
the figures, the raw numbers beside it.

usage: camlucida probe KIND [options]

{chr(10).join(f"  {kind:<16} {about}" for kind, about in KINDS.items())}

  camlucida probe top photos/ --out strongest/    what excites the units before the pooling most
  camlucida probe occlusion cat.jpg --out hidden/ what hiding each place costs
  camlucida probe KIND --help                     all options of a probe, with examples
"""


def module_of(kind: str) -> str:
    """The module that runs a kind of probe."""
    return f"camlucida.cli.probe_{kind.replace('-', '_')}"
