"""Opening a network: what its units see, on any network and any pictures (ZF paper, section 4; CAM paper, section 5)."""

from camlucida.probes.top_activations import RunningTop, TopActivations, top_activations

__all__ = ["RunningTop", "TopActivations", "top_activations"]
