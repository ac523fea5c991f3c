"""What can go wrong, in one line each: what was asked, what arrived, what is allowed, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CamlucidaError(Exception):
    """Root of every error that camlucida raises on purpose; the message is one line."""

    def __init__(
        self, asked: str, *, got: object = None, allowed: object = None, do: str | None = None
    ) -> None:
        self.asked, self.got, self.allowed, self.do = asked, got, allowed, do
        parts = [asked]
        if got is not None:
            parts.append(f"got {got}")
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        if do is not None:
            parts.append(do)
        super().__init__(" ".join("; ".join(parts).split()))


class UsageError(CamlucidaError):
    """The command or call itself is wrong (exit code 2)."""


class InputError(CamlucidaError):
    """One picture cannot be used; the run goes on without it (exit code 3)."""


class NetworkError(CamlucidaError):
    """A network cannot be found, loaded or understood."""


class TargetError(CamlucidaError):
    """What is to be explained does not fit the network's output."""


class LayerError(CamlucidaError):
    """A layer does not exist, has no spatial extent or is not reached."""


class UnsupportedError(CamlucidaError):
    """A method cannot be exact on this network and says so instead of guessing."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message: `did you mean 'x'?` for a near miss, else the whole list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(known[:30]) + (" …" if len(known) > 30 else "")
