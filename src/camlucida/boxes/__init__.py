"""Boxes from maps: simple thresholds, the tight/loose pair, the graph cut, every threshold at once; rules by name."""

from camlucida.boxes.catalogue import RULES, rule
from camlucida.boxes.component_tree import at_thresholds
from camlucida.boxes.from_map import FixedLevel, FractionOfMax, Quantile
from camlucida.boxes.graph_cut import GraphCut
from camlucida.boxes.tight_loose import TightLoose, top5_guesses

__all__ = [
    "RULES",
    "FixedLevel",
    "FractionOfMax",
    "GraphCut",
    "Quantile",
    "TightLoose",
    "at_thresholds",
    "rule",
    "top5_guesses",
]
