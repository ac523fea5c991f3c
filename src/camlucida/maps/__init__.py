"""Maps: where in a picture a scalar of the network comes from. One file per method, as the papers name it."""

from camlucida.maps.catalogue import METHODS, method

__all__ = ["METHODS", "method"]
