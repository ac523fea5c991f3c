"""Which methods share one walk through the network, so that a test of the walk need not run each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from camlucida.maps.gradients import GradientMethod


def one_of_each_walk(methods: Mapping[str, Any]) -> dict[str, Any]:
    """The methods without those that differ from Grad-CAM in their formula alone."""
    return {
        name: method for name, method in methods.items()
        if name == "grad-cam" or getattr(type(method), "_maps", None) is not GradientMethod._maps
    }  # fmt: skip
