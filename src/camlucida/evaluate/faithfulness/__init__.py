"""May a map be believed (section 20): does the network lose what the map says it needs, and does the map change when the
network does? Figures of each picture, from pixels, maps `(N, H, W)` in the view, a network and classes."""

from camlucida.evaluate.faithfulness.drop import Confidence as Confidence
from camlucida.evaluate.faithfulness.drop import adcc as adcc
from camlucida.evaluate.faithfulness.drop import black as black
from camlucida.evaluate.faithfulness.drop import coherency as coherency
from camlucida.evaluate.faithfulness.drop import complexity as complexity
from camlucida.evaluate.faithfulness.drop import confidence as confidence
from camlucida.evaluate.faithfulness.drop import masked as masked
from camlucida.evaluate.faithfulness.drop import win as win
from camlucida.evaluate.faithfulness.explain import Explainer as Explainer
from camlucida.evaluate.faithfulness.explain import explainer as explainer
from camlucida.evaluate.faithfulness.infidelity import Agreement as Agreement
from camlucida.evaluate.faithfulness.infidelity import agreement as agreement
from camlucida.evaluate.faithfulness.infidelity import occluder as occluder
from camlucida.evaluate.faithfulness.measure import BASELINES as BASELINES
from camlucida.evaluate.faithfulness.measure import METRICS as METRICS
from camlucida.evaluate.faithfulness.measure import Row as Row
from camlucida.evaluate.faithfulness.measure import measure as measure
from camlucida.evaluate.faithfulness.perturbation import SPEED as SPEED
from camlucida.evaluate.faithfulness.perturbation import Curves as Curves
from camlucida.evaluate.faithfulness.perturbation import deletion as deletion
from camlucida.evaluate.faithfulness.perturbation import insertion as insertion
from camlucida.evaluate.faithfulness.pictures import measure_pictures as measure_pictures
from camlucida.evaluate.faithfulness.road import Road as Road
from camlucida.evaluate.faithfulness.road import impute as impute
from camlucida.evaluate.faithfulness.road import road as road
from camlucida.evaluate.faithfulness.sanity import Sanity as Sanity
from camlucida.evaluate.faithfulness.sanity import randomisation as randomisation
from camlucida.evaluate.faithfulness.sanity import similarities as similarities
from camlucida.evaluate.faithfulness.summary import figures as figures
