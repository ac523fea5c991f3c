"""Opening a network: what its units see, on any network and any pictures (ZF paper, section 4; CAM paper, section 5)."""

from camlucida.probes.filters import Filters, FiltersAndUnits, filters_and_units, first_filters
from camlucida.probes.top_activations import RunningTop, TopActivations, top_activations

__all__ = [
    "Filters", "FiltersAndUnits", "RunningTop", "TopActivations", "filters_and_units", "first_filters", "top_activations",
]  # fmt: skip
