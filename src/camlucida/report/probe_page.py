"""The page of a probe: one HTML file that opens offline, of sections with strips of patches, charts and tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from camlucida import render
from camlucida.report import page as pages


@dataclass(frozen=True)
class Patch:
    """One picture: pixels `(H, W, 3)` uint8 or a PIL picture, shown as PNG, or an SVG's text. `alt`: what a person who
    cannot see it should know. `link`: a file in the folder, as `ProbeFolder.picture` names it. `photo`: kept as JPEG."""

    picture: Image.Image | NDArray[np.uint8] | str
    alt: str
    caption: str = ""
    link: str = ""
    photo: bool = False


@dataclass(frozen=True)
class Strip:
    """Patches side by side, of one width: `small` 6 rem (patches of units), `medium` 12, `large` 22, `wide` the page's.
    They are broken into lines where the screen is narrow."""

    patches: Sequence[Patch]
    title: str = ""
    text: str = ""
    size: Literal["small", "medium", "large", "wide"] = "medium"


@dataclass(frozen=True)
class Table:
    """Numbers are right-aligned where a column holds numbers alone; None is a dash, a float has three digits."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    text: str = ""
    blocks: Sequence[Strip | Table] = ()


@dataclass(frozen=True)
class Page:
    """`finding`: in one or two sentences what came out. `facts`: pairs of words (network, layers, pictures, seed …)."""

    title: str
    finding: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def write(
    page: Page, kind: str, command: Sequence[str] = (), rejected: Sequence[tuple[str, str]] = (), tool: str = "camlucida probe"
) -> str:  # fmt: skip
    """The whole page."""
    environment = pages.environment()
    environment.filters.update(embedded=embedded, cell=_cell)
    environment.tests.update(strip=lambda block: isinstance(block, Strip), numeric=_numeric)
    context = {
        "page": page, "kind": f"{tool} {kind}", "command": pages.command_line(command), "rejected": rejected[: pages.REJECTED_SHOWN],
        "rejected_total": len(rejected),
    }  # fmt: skip
    return environment.get_template("probe.html.j2").render(context)


def embedded(patch: Patch) -> Markup:
    """The element that shows a patch."""
    if isinstance(patch.picture, str):
        return Markup(patch.picture)
    image = patch.picture if isinstance(patch.picture, Image.Image) else Image.fromarray(patch.picture)
    if patch.photo:
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=85)
        data, kind = stream.getvalue(), "jpeg"
    else:
        data, kind = render.png(image), "png"
    text = base64.b64encode(data).decode("ascii")
    how = Markup(' class="cells"') if max(image.size) <= 96 and not patch.photo else ""
    return Markup(
        '<img src="data:image/{};base64,{}" alt="{}" width="{}" height="{}" decoding="async"{}>'
    ).format(kind, text, patch.alt, image.width, image.height, how)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return f"{value:,}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def _numeric(rows: Sequence[Sequence[Any]], column: int) -> bool:
    found = [row[column] for row in rows if row[column] is not None]
    return bool(found) and all(
        isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in found
    )
