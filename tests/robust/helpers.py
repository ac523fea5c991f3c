"""What the tests of this folder share: a small network, pictures, a run in a process that may die."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

import camlucida as cl
from camlucida.images.views import Preprocessing
from camlucida.networks import cards
from camlucida.networks.lucida import Lucida
from camlucida.values import Label

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


def pack_small(folder: Path) -> str:
    """A network of three classes with seeded weights."""
    torch.manual_seed(0)
    module = Lucida(num_classes=3, width=0.125)
    card = cl.Card(
        "small", "lucida", {"num_classes": 3, "width": 0.125}, Preprocessing(size=32, minimum=32),
        tuple(Label(f"n{i}", name) for i, name in enumerate(("one", "two", "three"))),
    )  # fmt: skip
    cards.pack(folder / "small.safetensors", module.state_dict(), card)
    return str(folder / "small.safetensors")


def in_child(work: Callable[[], int]) -> int:
    """The exit code of `work` in a forked process; an exception there is 99 and its traceback is printed."""
    return os.waitstatus_to_exitcode(os.waitpid(begun(work), 0)[1])


def begun(work: Callable[[], int]) -> int:
    """The process that does `work`, forked."""
    child = os.fork()
    if not child:
        code = 99
        try:
            torch.set_num_threads(1)  # the parent's other threads do not exist here
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child
