"""Opening a network: what its units see, on any network and any pictures (ZF paper, section 4; CAM paper, section 5)."""

from camlucida.probes.evolution import Evolution, evolution
from camlucida.probes.invariance import Invariance, invariance
from camlucida.probes.top_activations import RunningTop, TopActivations, top_activations

__all__ = [
    "Evolution", "Invariance", "RunningTop", "TopActivations", "evolution", "invariance", "top_activations",
]  # fmt: skip
