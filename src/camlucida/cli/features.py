"""Features of a frozen network and linear SVMs on them. One kind of work a file, `cli/features_KIND.py`."""

from __future__ import annotations

KINDS: dict[str, str] = {
    "extract": "pictures → one vector each: a memory-mapped array, a table of its rows",
    "svm": "vectors with labels → a linear SVM a class, judged; packed as a network that localizes",
    "crops": "fine-grained classes: SVMs on whole pictures, on crops that the maps make, on given boxes",
    "layers": "a linear SVM on each layer, random weights and raw pixels beside: figure, page, table",
    "transfer": "vectors with labels → a new softmax from few training pictures a class to many: figure, page, table",
}
HELP = f"""A new task from a few labelled pictures and a network that is not trained again: its features, a linear SVM on
them, and the SVM's class maps.

usage: camlucida features KIND [options]

{chr(10).join(f"  {kind:<9} {about}" for kind, about in KINDS.items())}

  camlucida features extract pictures/ --out vectors/
  camlucida features svm vectors/ --pack mine.safetensors
  camlucida features crops CUB_200_2011/ --out birds/
  camlucida localize photos/ --network mine.safetensors --out seen/
  camlucida features KIND --help                  all options, with examples
"""


def module_of(kind: str) -> str:
    """The module that runs a kind of work."""
    return f"camlucida.cli.features_{kind.replace('-', '_')}"
