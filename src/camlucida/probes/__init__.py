"""Opening a network: what its units see, on any network and any pictures (ZF paper, section 4; CAM paper, section 5)."""

from camlucida.probes.invariance import Invariance, invariance

__all__ = ["Invariance", "invariance"]
