"""Maps: where in a picture a scalar of the network comes from. One file per method, as the papers name it."""

from camlucida.maps.catalogue import METHODS, RECONSTRUCTIONS, any_method, available, describe, method
from camlucida.maps.ten_crop import ten_crop_cam

__all__ = ["METHODS", "RECONSTRUCTIONS", "any_method", "available", "describe", "method", "ten_crop_cam"]
