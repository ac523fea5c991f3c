"""Open a network: what its units see. One kind of probe a file, `cli/probe_KIND.py`."""

from __future__ import annotations

KINDS: dict[str, str] = {
    "receptive-field": "how much of the picture each layer's units see",
    "top": "the strongest pictures of every unit, cut to its field, beside their projections",
    "filters": "the first layer's filters, dead units of every layer, what the second layer sees",
}
HELP = f"""Open a network: what its units see, where, and what they are for. Every probe writes a folder: report.html with
the figures, the raw numbers beside it.

usage: camlucida probe KIND [options]

{chr(10).join(f"  {kind:<16} {about}" for kind, about in KINDS.items())}

  camlucida probe KIND --help                     all options of a probe, with examples
"""


def module_of(kind: str) -> str:
    """The module that runs a kind of probe."""
    return f"camlucida.cli.probe_{kind.replace('-', '_')}"
