"""Opening a network: what its units see, on any network and any pictures (ZF paper, section 4; CAM paper, section 5)."""

# A function of its module's name stands before the module: what else that module has comes by
# `from camlucida.probes.evolution import …`, and not by `import camlucida.probes.evolution as …`.
from camlucida.probes.ablation import Ablation
from camlucida.probes.class_units import class_units, contributions
from camlucida.probes.correspondence import Correspondence, SignChange, measure_correspondence
from camlucida.probes.evolution import Evolution, evolution
from camlucida.probes.filters import Filters, FiltersAndUnits, filters_and_units, first_filters
from camlucida.probes.invariance import Invariance, invariance
from camlucida.probes.layer_ablation import ablate_layers
from camlucida.probes.occlusion_study import OcclusionStudy, study_occlusion
from camlucida.probes.receptive_field import empirical_field, field_by_gradient, field_of
from camlucida.probes.top_activations import RunningTop, TopActivations, top_activations
from camlucida.probes.unit_ablation import ablate_units
from camlucida.probes.variants import Variant, depth, variant

__all__ = [
    "Ablation",
    "Correspondence",
    "Evolution",
    "Filters",
    "FiltersAndUnits",
    "Invariance",
    "OcclusionStudy",
    "RunningTop",
    "SignChange",
    "TopActivations",
    "Variant",
    "ablate_layers",
    "ablate_units",
    "class_units",
    "contributions",
    "depth",
    "empirical_field",
    "evolution",
    "field_by_gradient",
    "field_of",
    "filters_and_units",
    "first_filters",
    "invariance",
    "measure_correspondence",
    "study_occlusion",
    "top_activations",
    "variant",
]
