"""How a value shows itself: in one line, and in a notebook as a table with small pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from PIL import Image

from camlucida import render

SHOWN = 4  # pictures of a batch that a notebook shows; and of each picture, so many classes:
SHOWN_CLASSES = 6


class Shown:
    """How a value shows itself: `__repr__` in one line, and in a notebook as a table with small pictures.
    A value says its facts and, if it has any, its pictures; nothing of a notebook needs to be installed."""

    def _facts(self) -> Iterable[tuple[str, object]]:
        """Pairs of words."""
        return ()

    def _pictures(self) -> Iterable[tuple[str, Image.Image]]:
        """Captions and pictures, a few at most."""
        return ()

    def _more(self) -> str:
        """What is not shown, in words."""
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{word} {value}' for word, value in self._facts())})"

    def _repr_html_(self) -> str:
        return render.html(type(self).__name__, self._facts(), self._pictures(), self._more())

    def _repr_png_(self) -> bytes | None:
        pictures = [picture for _, picture in self._pictures()]
        return render.png(render.side_by_side(pictures)) if pictures else None


def sides(lengths: Iterable[float]) -> str:
    return " × ".join(f"{one:g}" for one in lengths)


def few(words: Sequence[str]) -> str:
    """The first few of a list, and how many more."""
    more = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f", and {more} more" if more > 0 else "")


def not_shown(more: int, what: str, of: str = "") -> str:
    return f"And {more} more {what}{'s' if more > 1 else ''}{of}." if more > 0 else ""
