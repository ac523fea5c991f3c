"""How good it is: classification and localization on labelled pictures, baselines beside every figure; and whether a map may be believed."""

from typing import Any

from camlucida.evaluate import classify as classify
from camlucida.evaluate import ilsvrc as ilsvrc
from camlucida.evaluate import pointing as pointing
from camlucida.evaluate import predictions as predictions
from camlucida.evaluate import scores as scores
from camlucida.evaluate import wsol as wsol


def __getattr__(name: str) -> Any:
    """`faithfulness` when it is first used: what localizes imports this package, and has no need of it."""
    if name == "faithfulness":
        import importlib

        return importlib.import_module("camlucida.evaluate.faithfulness")
    raise AttributeError(f"module 'camlucida.evaluate' has no attribute {name!r}")
