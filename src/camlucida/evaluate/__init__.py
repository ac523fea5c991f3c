"""How good it is: classification and localization on labelled pictures, baselines beside every figure."""

from camlucida.evaluate import ilsvrc as ilsvrc
from camlucida.evaluate import pointing as pointing
from camlucida.evaluate import wsol as wsol
