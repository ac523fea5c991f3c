"""A diagnosis as a page: one HTML file with the pictures behind the verdict, each finding in words and numbers."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camlucida import render
from camlucida.diagnosis import Diagnosis
from camlucida.errors import UsageError
from camlucida.report import figures, page

FILE = "doctor.html"
LONGEST = 480
HEADINGS = {"the model": "It is the model", "the map": "It is the map", "neither": "Neither is to blame"}


def place(folder: Path, overwrite: bool = False) -> Path:
    """Where the page goes. Raises UsageError where one lies already, unless `overwrite`."""
    file = folder / FILE
    if file.exists() and not overwrite:
        raise UsageError(f"{file} is there already", do="--overwrite replaces it, or name another folder")
    return file


def save(found: Diagnosis, file: Path, command: str = "") -> None:
    """Writes the page, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(write(found, command), encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write(found: Diagnosis, command: str = "") -> str:
    """The whole page."""
    who, _, what = found.verdict.partition(": ")
    bad = any(one.verdict == "bad" for one in found.findings)
    facts = [("Picture", found.picture), ("Network", found.network), ("Map", found.method)]
    facts += [("Layer", found.layer)] if found.layer else []
    facts += [("Pictures in the statistics", str(found.pictures))] if found.pictures > 1 else []
    context = {
        "who": HEADINGS[who], "what": what, "bad": bad, "facts": facts, "command": command, "pictures": _shown(found),
        "findings": [
            {"name": one.name, "verdict": one.verdict, "words": one.words, "numbers": _numbers(one.measured)}
            for one in found.findings
        ],
        "classes": [(label.name, figures.percent(p) if 0 <= p <= 1 else _spoken(p)) for label, p in found.top],
        "bar": ", ".join("#{:02x}{:02x}{:02x}".format(*c) for c in render.palette("heat", 15)),
    }  # fmt: skip
    return page.environment().get_template("diagnosis.html.j2").render(context)


def _shown(found: Diagnosis) -> list[dict[str, str]]:
    """Pictures with their captions: what was seen, then each map over it."""
    name = found.top[0][0].name.split(",")[0] if found.top else ""
    captions = {
        "map": f"The map of {name}",
        "occlusion": f"What a grey square costs {name}",
        "map, head randomised": "The map under a randomised head",
    }
    width, height = (round(side * LONGEST / max(found.shown.size)) for side in found.shown.size)
    large = found.shown.resize((max(width, 1), max(height, 1)), Image.Resampling.BICUBIC)
    pictures = [
        {
            "title": "What the network saw",
            "about": "{} × {} pixels".format(*found.shown.size),
            "data": _data(found.shown),
        }
    ]
    if found.expected is not None:
        about = "by the preprocessing that would fit"
        pictures.append({"title": "What it takes that for", "about": about, "data": _data(found.expected)})
    for kind, heat in found.heat.items():
        low, high = float(heat.min()), float(heat.max())
        about = f"{low:.3g} … {high:.3g}, raw" + ("; nowhere above zero" if high <= 0 else "")
        pictures.append(
            {"title": captions[kind], "about": about.replace("-", "−"), "data": _data(_over(large, heat))}
        )
    return pictures


def _over(picture: Image.Image, heat: NDArray) -> Image.Image:
    rgb = np.asarray(picture)
    return Image.fromarray(render.overlay(rgb, figures.stretched(np.nan_to_num(heat), *rgb.shape[:2])))


def _data(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(render.png(image)).decode("ascii")


def _numbers(measured: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Names and values for the table, one line each."""
    lines = []
    for name, value in measured.items():
        if isinstance(value, Mapping):
            lines += _numbers(value, f"{before}{name}: ")
        else:
            lines.append((before + name, _spoken(value)))
    return lines


def _spoken(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    if isinstance(value, (list, tuple)):
        return ", ".join(_spoken(one) for one in value)
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)
