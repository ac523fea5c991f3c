"""Opening a network: what its units see, on any network and any pictures (ZF paper, section 4; CAM paper, section 5)."""

from camlucida.probes.correspondence import Correspondence, SignChange, measure_correspondence
from camlucida.probes.occlusion_study import OcclusionStudy, peaks, study_occlusion

__all__ = [
    "Correspondence",
    "OcclusionStudy",
    "SignChange",
    "measure_correspondence",
    "peaks",
    "study_occlusion",
]
