"""Box rules by name. A literal table, so that listing the rules imports none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from camlucida import specs

if TYPE_CHECKING:
    from camlucida.boxes.from_map import Rule

RULES: dict[str, str] = {
    "fraction-of-max": "camlucida.boxes.from_map:FractionOfMax",
    "quantile": "camlucida.boxes.from_map:Quantile",
    "fixed-level": "camlucida.boxes.from_map:FixedLevel",
    "tight-loose": "camlucida.boxes.tight_loose:TightLoose",
    "graph-cut": "camlucida.boxes.graph_cut:GraphCut",
}


def rule(spec: str) -> Rule:
    """The rule that a spec describes, such as `fraction-of-max:threshold=0.3,components=all`."""
    return cast("Rule", specs.build(spec, RULES, "box rule"))
