"""How good it is: classification and localization on labelled pictures, baselines beside every figure; and whether a map may be believed."""

from camlucida.evaluate import classify as classify
from camlucida.evaluate import faithfulness as faithfulness
from camlucida.evaluate import ilsvrc as ilsvrc
from camlucida.evaluate import pointing as pointing
from camlucida.evaluate import predictions as predictions
from camlucida.evaluate import scores as scores
from camlucida.evaluate import wsol as wsol
