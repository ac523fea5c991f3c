"""Errors say what was asked, what arrived, what is allowed and what to do, in one line."""

from __future__ import annotations

import pytest

from camlucida import errors
from camlucida.errors import CamlucidaError, InputError, UsageError, nearest


def test_a_message_is_its_four_parts_in_order():
    error = CamlucidaError("patch", got=0, allowed="1 … 64", do="use --patch 8")
    assert str(error) == "patch; got 0; allowed: 1 … 64; use --patch 8"
    assert (error.asked, error.got, error.allowed, error.do) == ("patch", 0, "1 … 64", "use --patch 8")


def test_parts_that_are_not_given_leave_nothing_behind():
    assert str(InputError("empty file")) == "empty file"
    assert str(UsageError("crop", do="use a smaller one")) == "crop; use a smaller one"
    assert str(UsageError("crop", got=False)) == "crop; got False"  # a value that is falsy was still given


def test_a_message_is_one_line_whatever_it_quotes():
    assert str(UsageError("cannot\nread", got="a\r\n  long\ttext")) == "cannot read; got a long text"


@pytest.mark.parametrize(
    "kind", ["UsageError", "InputError", "NetworkError", "TargetError", "LayerError", "UnsupportedError"]
)
def test_every_kind_is_a_camlucida_error_and_no_other_kind(kind):
    cls = getattr(errors, kind)
    assert cls.__bases__ == (CamlucidaError,)
    with pytest.raises(CamlucidaError, match="asked"):
        raise cls("asked")


def test_nearest_offers_the_near_miss_or_the_list():
    assert nearest("grad-can", ["occlusion", "grad-cam", "cam"]) == "did you mean 'grad-cam'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert nearest("zzz", (f"{i:02d}" for i in range(31))) == (
        "known: " + ", ".join(f"{i:02d}" for i in range(30)) + " …"
    )
    assert not nearest("zzz", [f"{i:02d}" for i in range(30)]).endswith("…")
