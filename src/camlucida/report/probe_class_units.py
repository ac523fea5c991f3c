"""Figures of class-specific units: pictures cut out where a unit looks, and what units add to a logit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camlucida.geometry import Box, View
from camlucida.probes.class_units import ClassUnits, Found
from camlucida.probes.looking import Pictures
from camlucida.report import charts

LONGEST = 256  # longer side of a cut-out
BARS = 8  # units with a bar of their own


def in_view(picture: Image.Image, view: View | None) -> Image.Image:
    """What of the source picture the network was shown, in the source's own pixels, its longer side at most 256."""
    if view is None or (picture.height, picture.width) != (view.source.height, view.source.width):
        box, size = (0.0, 0.0, float(picture.width), float(picture.height)), picture.size
    else:
        box = view.box_to_source(Box(0, 0, view.size.width, view.size.height)).clipped(view.source).corners
        size = round(box[2] - box[0]), round(box[3] - box[1])
    factor = min(1.0, LONGEST / max(size))
    width, height = (max(1, round(side * factor)) for side in size)
    return picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=3.0)


def cut_out(picture: Image.Image, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Picture × mask, `(H, W, 3)`: black where the unit does not look."""
    stretched = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BILINEAR)
    return np.where(np.asarray(stretched)[..., None] >= 128, np.asarray(picture), 0).astype(np.uint8)


def shares(one: ClassUnits) -> dict[str, float]:
    """The largest contributions to the class's logit in its surest picture, by unit; all others together; the bias; their
    sum."""
    values = one.contributions.values[0].double().cpu().numpy()
    order = np.argsort(-np.abs(values), kind="stable")
    found = {f"unit {k}": float(values[k]) for k in sorted(order[:BARS].tolist(), key=lambda k: -values[k])}
    if len(values) > BARS:
        found[f"{len(values) - BARS} other units"] = float(values[order[BARS:]].sum())
    bias = float(one.contributions.bias[0])
    return found | {"bias": bias, "logit": float(values.sum()) + bias}


def bars(one: ClassUnits, name: str) -> str:
    return charts.bars(shares(one), f"What units add to the logit of {name} in its surest picture")


def figures(found: Found) -> list[dict[str, Any]]:
    """Of each class: how many of its units' pictures are predicted as it, and what share of all that speaks for it in its surest
    picture (positive contributions) its units add."""
    rows = []
    for one in found.classes:
        segments = [s for unit in one.units for s in unit.segments]
        values = one.contributions.values[0].double().cpu().numpy()
        bias, logit = float(one.contributions.bias[0]), float(one.contributions.logits[0])
        positive = float(values.clip(0).sum())
        rows.append(
            {
                "class_index": one.index, "units": [unit.unit for unit in one.units], "pictures": len(segments),
                "predicted_as_it": sum(s.predicted == one.index for s in segments), "logit": logit, "bias": bias,
                "sum_of_units": float(values.sum()), "off_by": float(values.sum()) + bias - logit,
                "share_of_positive": float(values[[u.unit for u in one.units]].clip(0).sum()) / positive if positive > 0 else None,
            }
        )  # fmt: skip
    return rows


def table(found: Found, pictures: Pictures, name: Any) -> list[dict[str, Any]]:
    """One row a segment."""
    return [
        {
            "class_index": one.index, "class_name": name(one.index), "rank": unit.rank, "unit": unit.unit, "weight": unit.weight,
            "place": place, "path": pictures.name(s.peak.picture), "activation": s.peak.value, "row": s.peak.cell[0],
            "column": s.peak.cell[1], "predicted": s.predicted, "predicted_name": name(s.predicted), "share_of_view": float(s.mask.mean()),
        }
        for one in found.classes for unit in one.units for place, s in enumerate(unit.segments, 1)
    ]  # fmt: skip


def arrays(found: Found) -> dict[str, NDArray]:
    """Weights and contributions of every class, maps and masks of every segment."""
    kept: dict[str, NDArray] = {}
    for one in found.classes:
        kept[f"class-{one.index}-weights"] = one.weights
        kept[f"class-{one.index}-contributions"] = one.contributions.values[0].cpu().numpy()
        for unit in one.units:
            for place, s in enumerate(unit.segments, 1):
                kept[f"unit-{unit.unit}-map-{place}"] = s.activation
                kept[f"unit-{unit.unit}-mask-{place}"] = s.mask
            if unit.field is not None:
                kept[f"unit-{unit.unit}-field"] = unit.field.values
    return kept
