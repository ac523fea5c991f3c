"""Maps: where in a picture a scalar of the network comes from. One file per method, as the papers name it."""

from camlucida.maps.catalogue import METHODS, method
from camlucida.maps.ten_crop import ten_crop_cam

__all__ = ["METHODS", "method", "ten_crop_cam"]
