"""The page: one HTML file with pictures, maps drawn from their raw grids, and boxes at every threshold."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from camlucida import render
from camlucida.images.read import SEVERAL
from camlucida.pipeline import Seen
from camlucida.report import figures
from camlucida.values import Localization

CELLS = 64
REJECTED_SHOWN = 500
STEPS = 65535


def entry(seen: Seen, small: Image.Image | None = None) -> dict[str, Any]:
    """What the page keeps of a picture, ready for JSON: a small JPEG (of `small` where it is there already), and for each class its words and
    numbers, the found boxes (source pixels), the raw grid and the swept boxes. Grids are 16-bit steps between
    their lowest and highest value; grids above 64 cells a side are averaged down. Numbers that are not finite
    become None."""
    width, height = seen.picture.size
    stream = io.BytesIO()
    (small or figures.small(seen.picture)).save(stream, "JPEG", quality=82)
    sweeps = seen.sweep if len(seen.thresholds) else [None] * len(seen.found)
    return {
        "path": seen.source.name,
        "name": seen.source.relative,
        "width": width,
        "height": height,
        "picture": "data:image/jpeg;base64," + _base64(stream.getvalue()),
        "note": SEVERAL if SEVERAL in seen.picture.info else "",
        "truth": [_numbers(box.corners) for box in seen.truth],
        "thresholds": _numbers(seen.thresholds),
        "classes": [
            _class(found, heat, sweep, width, height)
            for found, heat, sweep in zip(seen.found, seen.maps, sweeps, strict=True)
        ],
    }


def _class(
    found: Localization, heat: NDArray, sweep: NDArray | None, width: int, height: int
) -> dict[str, Any]:
    return {
        "rank": found.rank,
        "index": found.class_index,
        "id": found.class_id,
        "name": found.class_name,
        "probability": None if found.probability is None else _number(found.probability),
        "logit": _number(found.logit),
        "status": found.status,
        "rule": found.box_rule,
        "threshold": None if found.threshold is None else _number(found.threshold),
        "boxes": [_numbers((*scored.box.corners, scored.score)) for scored in found.boxes],
        "grid": _grid(heat) if figures.paintable(found, heat) else None,
        "sweep": None if sweep is None else _swept(sweep, width, height),
    }


def write(entries: Iterable[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """The whole page. `summary`, every key optional: `title`; `facts`, pairs of words (network, method, rule
    …); `total`, pictures in the run; `rejected`, pairs (path, reason); `rejected_total`; `command`."""
    cards = [dict(one) for one in entries]
    thresholds: list[float] = next((card["thresholds"] for card in cards if card["thresholds"]), [])
    for card in cards:
        if (
            card["thresholds"] != thresholds
        ):  # one slider moves all boxes: another list of thresholds cannot follow it
            card["classes"] = [{**one, "sweep": None} for one in card["classes"]]
    classes = [one for card in cards for one in card["classes"]]
    own = next((one["threshold"] for one in classes if one["threshold"] is not None), None)
    present = {one["status"] for one in classes}
    rejected = list(summary.get("rejected", ()))
    heat = render.palette("heat")
    context = {
        "cards": cards,
        "title": summary.get("title", "What the network saw, and where"),
        "facts": list(summary.get("facts", ())),
        "total": summary.get("total", len(cards)),
        "rejected": rejected[:REJECTED_SHOWN],
        "rejected_total": summary.get("rejected_total", len(rejected)),
        "command": summary.get("command", ""),
        "meaning": figures.MEANING,
        "statuses": [word for word in figures.MEANING if word in present],
        "has_truth": any(card["truth"] for card in cards),
        "has_sweep": any(one["sweep"] for one in classes),
        "bar": ", ".join(
            "#{:02x}{:02x}{:02x}".format(*heat[i]) for i in np.linspace(0, 255, 15).round().astype(int)
        ),
        "cold": "#{:02x}{:02x}{:02x}".format(*heat[0]),
        "found_colour": "rgb({}, {}, {})".format(*render.FOUND),
        "truth_colour": "rgb({}, {}, {})".format(*render.TRUTH),
        "page_data": {
            "palette": _base64(heat.tobytes()),
            "thresholds": thresholds,
            "own": own,
            "start": _nearest(thresholds, 0.2 if own is None else own),
        },
    }
    return environment().get_template("page.html.j2").render(context)


def command_line(words: Sequence[str]) -> str:
    """A command as it can be typed again; its first word may be the program and its verb."""
    return shlex.join([*words[0].split(), *words[1:]]) if words else ""


def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        percent=figures.percent,
        sure=lambda one: figures.sure(one["probability"], one["logit"]),
        short=_short,
        json=_json,
        drawn=_drawn,
        box_words=_box_words,
    )
    made.filters["tail"] = lambda path: path.rsplit("/", 1)[-1]
    made.filters["head"] = lambda path: path.rpartition("/")[0]
    return made


def _json(value: Any) -> Markup:
    """JSON that can stand inside a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _drawn(card: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's script needs of a card; the words stand in the page itself."""
    classes = [
        {key: one[key] for key in ("rank", "boxes", "grid", "sweep", "status")} for one in card["classes"]
    ]
    return {"width": card["width"], "height": card["height"], "truth": card["truth"], "classes": classes}


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def _box_words(boxes: Sequence[Sequence[float]]) -> str:
    """`box from (10, 20) to (300, 200)` for alternative texts."""
    words = [f"from ({x0:.0f}, {y0:.0f}) to ({x1:.0f}, {y1:.0f})" for x0, y0, x1, y1, *_ in boxes]
    return ("box " if len(words) == 1 else "boxes ") + ", ".join(words) if words else "no box"


def _grid(heat: NDArray) -> dict[str, Any]:
    """A finite map `(h, w)` as 16-bit steps, little-endian, base64."""
    low, high = float(heat.min()), float(heat.max())
    rows, columns = heat.shape
    if max(rows, columns) > CELLS:
        columns, rows = figures.fitted(columns, rows, CELLS)
        shrunk = Image.fromarray(np.ascontiguousarray(heat, np.float32)).resize(
            (columns, rows), Image.Resampling.BOX
        )
        heat = np.asarray(shrunk)
    steps = np.rint((np.asarray(heat, np.float64) - low) / ((high - low) or 1.0) * STEPS)
    values = _base64(np.clip(steps, 0, STEPS).astype("<u2").tobytes())
    return {"rows": rows, "columns": columns, "low": low, "high": high, "values": values}


def _swept(sweep: NDArray, width: int, height: int) -> str:
    """Boxes `(T, 4)` as 16-bit shares of the picture's sides, little-endian, base64; no box has x0 > x1."""
    shares = np.asarray(sweep, np.float64) / [width, height, width, height]
    none = ~np.isfinite(shares).all(-1, keepdims=True)
    steps = np.rint(np.clip(np.where(none, [[1.0, 1.0, 0.0, 0.0]], shares), 0, 1) * STEPS)
    return _base64(steps.astype("<u2").tobytes())


def _nearest(values: Sequence[float], value: float) -> int:
    return min(range(len(values)), key=lambda i: abs(values[i] - value), default=0)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _number(value: float) -> float | None:
    value = float(value)
    return value if np.isfinite(value) else None


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [_number(value) for value in values]
