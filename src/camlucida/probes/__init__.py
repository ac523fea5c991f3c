"""Opening a network: what its units see, on any network and any pictures (ZF paper, section 4; CAM paper, section 5)."""

from camlucida.probes.class_units import class_units, contributions
from camlucida.probes.correspondence import Correspondence, SignChange, measure_correspondence
from camlucida.probes.evolution import Evolution, evolution
from camlucida.probes.invariance import Invariance, invariance
from camlucida.probes.occlusion_study import OcclusionStudy, study_occlusion
from camlucida.probes.receptive_field import empirical_field, field_by_gradient, field_of
from camlucida.probes.top_activations import RunningTop, TopActivations, top_activations

__all__ = [
    "Correspondence",
    "Evolution",
    "Invariance",
    "OcclusionStudy",
    "RunningTop",
    "SignChange",
    "TopActivations",
    "class_units",
    "contributions",
    "empirical_field",
    "evolution",
    "field_by_gradient",
    "field_of",
    "invariance",
    "measure_correspondence",
    "study_occlusion",
    "top_activations",
]
