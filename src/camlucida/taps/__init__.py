"""The only place that reaches into a running module. Whatever it attaches, switches or draws is put back, always."""

from camlucida.taps.adding import Constants, constants
from camlucida.taps.borrowing import borrowed, channels_last, lent
from camlucida.taps.bypassing import bypassed
from camlucida.taps.footprint import Footprint
from camlucida.taps.rectifying import rectified
from camlucida.taps.running import PIXELS, Point, Run, run, watched
from camlucida.taps.tracing import OPAQUE, Operation, Trace, Value, trace
from camlucida.taps.walking import buffers, parameters, parts

__all__ = [
    "OPAQUE",
    "PIXELS",
    "Constants",
    "Footprint",
    "Operation",
    "Point",
    "Run",
    "Trace",
    "Value",
    "borrowed",
    "buffers",
    "bypassed",
    "channels_last",
    "constants",
    "lent",
    "parameters",
    "parts",
    "rectified",
    "run",
    "trace",
    "watched",
]
