"""Opening a network: what its units see, on any network and any pictures (ZF paper, section 4; CAM paper, section 5)."""

from camlucida.probes.correspondence import Correspondence, SignChange, measure_correspondence
from camlucida.probes.evolution import Evolution, evolution
from camlucida.probes.invariance import Invariance, invariance
from camlucida.probes.occlusion_study import OcclusionStudy, study_occlusion
from camlucida.probes.top_activations import RunningTop, TopActivations, top_activations

__all__ = [
    "Correspondence",
    "Evolution",
    "Invariance",
    "OcclusionStudy",
    "RunningTop",
    "SignChange",
    "TopActivations",
    "evolution",
    "invariance",
    "measure_correspondence",
    "study_occlusion",
    "top_activations",
]
