"""Opening a network: what its units see, on any network and any pictures (ZF paper, section 4; CAM paper, section 5)."""

from camlucida.probes.ablation import Ablation
from camlucida.probes.layer_ablation import ablate_layers
from camlucida.probes.unit_ablation import ablate_units
from camlucida.probes.variants import Variant, depth, variant

__all__ = ["Ablation", "Variant", "ablate_layers", "ablate_units", "depth", "variant"]
