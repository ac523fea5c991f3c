"""Opening a network: what its units see, on any network and any pictures (ZF paper, section 4; CAM paper, section 5)."""

from camlucida.probes.class_units import class_units as class_units
from camlucida.probes.class_units import contributions as contributions
from camlucida.probes.receptive_field import empirical_field as empirical_field
from camlucida.probes.receptive_field import field_by_gradient as field_by_gradient
from camlucida.probes.receptive_field import field_of as field_of
