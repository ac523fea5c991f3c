"""What the checks found and what it comes to: the model, the map, or neither."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camlucida.errors import UsageError, nearest
from camlucida.values import Label

Verdict = Literal["good", "doubtful", "bad"]


@dataclass(frozen=True)
class Finding:
    """One check: how it came out, in words, and the numbers behind them (plain values, ready for JSON). `about`: what
    is to blame where it is bad."""

    name: str
    verdict: Verdict
    words: str
    measured: Mapping[str, Any]
    about: Literal["model", "map"] = "model"


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What the checks found, the most telling first. `top`: labels and probabilities, best first; the map explains the
    first of them. `shown`: what the network saw, un-normalised; `expected`: the same pixels as the better
    preprocessing would read them, if one was named; `heat`: raw maps `(H, W)` over `shown`, by name."""

    picture: str
    pictures: int
    network: str
    method: str
    layer: str | None
    top: tuple[tuple[Label, float], ...]
    findings: tuple[Finding, ...]
    shown: Image.Image = field(repr=False)
    expected: Image.Image | None = field(repr=False, default=None)
    heat: Mapping[str, NDArray[np.float32]] = field(repr=False, default_factory=dict)

    @property
    def verdict(self) -> str:
        """`the model: …`, `the map: …`, or `neither: the map may be trusted as far as …`."""
        bad = [one for one in self.findings if one.verdict == "bad"]
        if bad:
            more = f"; also bad: {', '.join(one.name for one in bad[1:])}" if bad[1:] else ""
            return f"the {bad[0].about}: {bad[0].words}{more}"
        doubtful = [one for one in self.findings if one.verdict == "doubtful"]
        found = next((one for one in self.findings if one.name == "occlusion"), None)
        places = (
            f"{found.measured['places'][0]} × {found.measured['places'][1]} places" if found else "it goes"
        )
        if not doubtful:
            return f"neither: the map may be trusted as far as occlusion at {places} can tell"
        doubts = "; ".join(f"{one.name}: {one.words}" for one in doubtful)
        return f"neither: the map may be trusted as far as these doubts allow: {doubts}"

    def __getitem__(self, name: str) -> Finding:
        """A finding by its name."""
        for one in self.findings:
            if one.name == name:
                return one
        raise UsageError(f"finding {name!r}", do=nearest(name, [one.name for one in self.findings]))

    def __str__(self) -> str:
        lines = [
            f"{self.picture}, {self.network}, {self.method}" + (f" at {self.layer}" if self.layer else "")
        ]
        lines += [f"  {one.verdict:<9}{one.name}: {one.words}" for one in self.findings]
        return "\n".join([*lines, self.verdict])

    def to_json(self) -> str:
        top = [{"id": label.id, "name": label.name, "probability": p} for label, p in self.top]
        keys = ("name", "about", "verdict", "words", "measured")
        found = [{key: getattr(one, key) for key in keys} for one in self.findings]
        whole = {
            "picture": self.picture, "pictures": self.pictures, "network": self.network, "method": self.method,
            "layer": self.layer, "top": top, "findings": found, "verdict": self.verdict,
        }  # fmt: skip
        return json.dumps(_finite(whole), ensure_ascii=False, allow_nan=False)


def _finite(tree: Any) -> Any:
    """Numbers that JSON cannot hold become None."""
    if isinstance(tree, Mapping):
        return {key: _finite(branch) for key, branch in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_finite(branch) for branch in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
