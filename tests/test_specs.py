"""Objects by name with options: `build` and its inverse `describe`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camlucida.boxes import RULES, FixedLevel, FractionOfMax, GraphCut, Quantile, TightLoose, rule
from camlucida.errors import UsageError
from camlucida.specs import build, describe


@dataclass(frozen=True)
class Kitchen:
    """Every kind of field."""

    count: int = 3
    share: float = 0.5
    hot: bool = True
    layer: str | None = None
    mode: Literal["near", "far"] = "near"
    ways: Literal[8, 4] = 8
    fill: float | Literal["mean"] = 0.0
    size: int | tuple[int, int] = 7
    names: tuple[str, ...] = field(default_factory=lambda: ("a", "b"))
    thing: object = None
    hidden: int = field(default=1, init=False)


@dataclass(frozen=True)
class Needy:
    must: int
    may: int = 0


class Bare:
    pass


@dataclass(frozen=True)
class Stranger:
    x: int = 1


CATALOGUE = {
    "kitchen": f"{__name__}:Kitchen",
    "needy": f"{__name__}:Needy",
    "bare": f"{__name__}:Bare",
    "absent": "no.such.module:Thing",
}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("kitchen", Kitchen()),
        ("kitchen:", Kitchen()),
        (" kitchen : count = 4 , hot=false", Kitchen(count=4, hot=False)),
        ("kitchen:share=1,layer=layer4.0", Kitchen(share=1.0, layer="layer4.0")),
        ("kitchen:share=-1e-3,layer=none", Kitchen(share=-0.001)),
        ("kitchen:mode=far,ways=4", Kitchen(mode="far", ways=4)),
        ("kitchen:fill=mean", Kitchen(fill="mean")),
        ("kitchen:fill=0.25,size=3/5", Kitchen(fill=0.25, size=(3, 5))),
        ("kitchen:size=5,names=x/y/z", Kitchen(size=5, names=("x", "y", "z"))),
        ("kitchen:names=", Kitchen(names=())),
        ("needy:must=2", Needy(2)),
    ],
)
def test_build(spec, expected):
    assert build(spec, CATALOGUE, "utensil") == expected
    assert build(describe(expected, CATALOGUE), CATALOGUE, "utensil") == expected


def test_values_have_the_type_of_the_field():
    made = build("kitchen:share=1,ways=4,hot=true,layer=7", CATALOGUE, "utensil")
    assert [type(v) for v in (made.share, made.ways, made.hot, made.layer)] == [float, int, bool, str]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("kitchn", ["utensil", "'kitchn'", "did you mean 'kitchen'?"]),
        ("", ["utensil", "known: absent, bare, kitchen, needy"]),
        ("kitchen:cuont=3", ["option", "'cuont'", "did you mean 'count'?"]),
        ("kitchen:hidden=3", ["'hidden'"]),
        ("kitchen:count=3.5", ["count", "'3.5'", "an integer"]),
        ("kitchen:hot=yes", ["hot", "'yes'", "true | false"]),
        ("kitchen:mode=middle", ["mode", "near | far"]),
        ("kitchen:ways=6", ["ways", "8 | 4"]),
        ("kitchen:fill=median", ["fill", "a number | mean"]),
        ("kitchen:size=1/2/3", ["size", "an integer | an integer/an integer"]),
        ("kitchen:count", ["'count'", "option=value"]),
        ("kitchen:count=1,", ["option=value"]),
        ("kitchen:=1", ["option=value"]),
        ("kitchen:count=1,count=2", ["count", "twice"]),
        ("kitchen:thing=spoon", ["thing", "set it in Python"]),
        ("needy:may=1", ["needy", "give must=…"]),
        ("bare:x=1", ["'x'", "it has none"]),
    ],
)
def test_refusals(spec, words):
    with pytest.raises(UsageError) as error:
        build(spec, CATALOGUE, "utensil")
    for word in words:
        assert word in str(error.value)


def test_describe_gives_only_what_differs():
    assert describe(Kitchen(), CATALOGUE) == "kitchen"
    made = Kitchen(count=np.int64(4), share=np.float32(0.25), hot=False, layer="conv5", names=())
    assert describe(made, CATALOGUE) == "kitchen:count=4,share=0.25,hot=false,layer=conv5,names="
    assert describe(Needy(2), CATALOGUE) == "needy:must=2"
    assert describe(Bare(), CATALOGUE) == "bare"


def test_describe_never_fails():
    assert describe(Kitchen(thing=np.zeros(3)), CATALOGUE) == "kitchen:thing=<ndarray>"
    assert describe(Stranger(x=2), CATALOGUE) == f"{__name__}:Stranger:x=2"


def test_rules_by_name():
    assert [type(rule(name)) for name in RULES] == [
        FractionOfMax, Quantile, FixedLevel, TightLoose, GraphCut,
    ]  # fmt: skip
    assert rule("fraction-of-max:threshold=0.3,components=all") == FractionOfMax(0.3, "all")
    assert rule("fraction-of-max:normalise=true,connectivity=4") == FractionOfMax(
        connectivity=4, normalise=True
    )
    assert rule("tight-loose:levels=30/90,border=0") == TightLoose(levels=(30, 90), border=0.0)
    assert describe(TightLoose(levels=(30, 90)), RULES) == "tight-loose:levels=30/90"
    assert describe(Quantile(0.9), RULES) == "quantile:q=0.9"
    with pytest.raises(UsageError, match="did you mean 'quantile'"):
        rule("quantil")
    with pytest.raises(UsageError, match=r"box rule fraction-of-max.*did you mean 'threshold'"):
        rule("fraction-of-max:treshold=0.3")
    with pytest.raises(UsageError, match="0 to 1"):
        rule("fraction-of-max:threshold=30")


@given(st.floats(0, 1), st.sampled_from(["largest", "all"]), st.sampled_from([4, 8]), st.booleans())
def test_describe_is_the_inverse(threshold, components, connectivity, normalise):
    made = FractionOfMax(threshold, components, connectivity, normalise)
    assert rule(describe(made, RULES)) == made


def test_the_grammar_alone_imports_nothing_heavy():
    heavy = "'torch', 'numpy', 'scipy'"
    code = f"import sys, camlucida.specs; print([name for name in ({heavy}) if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
