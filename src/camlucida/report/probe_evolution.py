"""What `probes.evolution` found, as a page: a strip per unit, the layers' rates, the paper's claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from camlucida import render
from camlucida.probes.evolution import SETTLED, Evolution, History, Moment
from camlucida.report import charts
from camlucida.report.probe_page import Patch, Section, Strip, Table

SIDE, GAP = 96, 4  # pixels that a patch has at least on its longer side; between projection and picture
FEW, LONG = 10, 0.5  # "a few epochs"; which part of the run is long


def numbers(found: Evolution) -> list[float] | None:
    """The checkpoints as epochs, where their names are numbers."""
    return (
        [float(name) for name in found.checkpoints] if all(n.isdecimal() for n in found.checkpoints) else None
    )


def figures(found: Evolution) -> dict[str, Any]:
    """By layer: at which checkpoint it has settled, its correlations, its share of new leaders, mean over checkpoints."""

    def row(values: Any) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in values]

    return {
        layer: {
            "settled": _settled(found, layer),
            "to_last": row(found.to_last[layer]),
            "to_previous": row(found.to_previous[layer]),
            "replaced": row(found.replaced[layer]),
        }
        for layer in found.layers
    }


def _settled(found: Evolution, layer: str) -> str | None:
    at = found.settled(layer)
    return None if at is None else found.checkpoints[at]


def claims(found: Evolution) -> list[tuple[str, str, bool]]:
    """Each claim of the paper, what was measured, and whether it holds here."""
    if len(found.layers) < 2:
        return []
    last = len(found.checkpoints) - 1
    at = {layer: one if (one := found.settled(layer)) is not None else last for layer in found.layers}
    order = [at[layer] for layer in found.layers]
    measured = ", ".join(f"{layer} {_at(found, layer)}" for layer in found.layers)
    made = [(
        "Low layers settle first: no layer settles before one below it, and the lowest before the uppermost", measured,
        all(a <= b for a, b in pairwise(order)) and order[0] < order[-1],
    )]  # fmt: skip
    epochs, low, high = numbers(found), found.layers[0], found.layers[-1]
    if epochs:
        made.append((f"The lowest layer settles within a few epochs (at most {FEW})", f"{low} {_at(found, low)}", epochs[at[low]] <= FEW))  # fmt: skip
        made.append((
            f"The uppermost layer takes long: more than half of the {epochs[-1]:g} epochs", f"{high} {_at(found, high)}",
            epochs[at[high]] > LONG * epochs[-1],
        ))  # fmt: skip
    new = {layer: _mean(found.replaced[layer]) for layer in (low, high)}
    if np.isfinite([*new.values()]).all():
        made.append((
            "Jumps: another picture takes the lead, more often in the uppermost layer than in the lowest",
            ", ".join(f"{layer} {share:.0%} of units from one checkpoint to the next" for layer, share in new.items()),
            0 < new[high] > new[low],
        ))  # fmt: skip
    return made


def _at(found: Evolution, layer: str) -> str:
    settled = _settled(found, layer)
    word = "epoch " if numbers(found) else ""
    return f"not before the last, {word}{found.checkpoints[-1]}" if settled is None else f"at {word}{settled}"


def _mean(values: Any) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def finding(found: Evolution) -> str:
    """What came out, in words made from the numbers."""
    first = ", ".join(f"{layer} {_at(found, layer)}" for layer in found.layers)
    said = [f"Settled (correlation of {SETTLED:g} with the last checkpoint): {first}."]
    listed = claims(found)
    if listed:
        said.append("Low layers settle first." if listed[0][2] else "Low layers do not settle first.")
    changes = [len(one.takeovers) for one in found.histories]
    said.append(
        f"Another picture took the lead {sum(changes)} times in the {len(changes)} units shown, over {len(found.checkpoints)} checkpoints."
    )
    return " ".join(said)


def sections(found: Evolution, names: Mapping[int, str], links: Mapping[int, str]) -> list[Section]:
    """`names`, `links`: of the pictures that are shown, by number."""
    made = []
    listed = claims(found)
    if listed:
        rows = [[claim, f"{'Yes' if holds else 'No'}: {measured}"] for claim, measured, holds in listed]
        text = "As the ZF paper (section 4.1) states them for its network; the measures are this page's."
        made.append(Section("The paper's claims", text, [Table(["Claim", "Does it hold here?"], rows)]))
    x = numbers(found) or [i + 1 for i in range(len(found.checkpoints))]
    x_title = "epoch" if numbers(found) else "checkpoint"
    panels = []
    for values, title, y_title in (
        (found.to_last, "Correlation with the last checkpoint", "correlation"),
        (found.to_previous, "Correlation with the checkpoint before", "correlation"),
        (found.replaced, "Units with a new strongest picture since the checkpoint before", "share of units"),
    ):
        series = {layer: (x, values[layer]) for layer in found.layers}
        low = min(0.0, *(float(np.nanmin([*v, 0.0])) for v in values.values()))
        panels.append(
            Patch(
                charts.lines(
                    series, title, x_title, y_title, y_range=(-1.0 if low < 0 else 0.0, 1.0), marks=True
                ),
                "",
                title,
            )
        )
    head = ["Layer", "Settled at", *(f"to last, {name}" for name in found.checkpoints[:-1])]
    table: list[list[Any]] = [
        [layer, _settled(found, layer) or "–", *map(float, found.to_last[layer][:-1])]
        for layer in found.layers
    ]
    text = (
        "Of every unit of a layer, the highest activation in each picture; its correlation between two checkpoints over "
        f"{found.compared:,} pictures, averaged over units. Settled at: the first checkpoint from which the correlation "
        f"with the last stays at {SETTLED:g} or above; –: only the last. It is measured against where this run ends."
    )
    made.append(
        Section("How early each layer settles", text, [Strip(panels, size="large"), Table(head, table)])
    )
    for layer in found.layers:
        strips = [_strip(found, one, names, links) for one in found.histories if one.layer == layer]
        text = "The projection of the strongest activation over all pictures, above the picture it comes from. Zero is mid-grey; each has its own scale."  # fmt: skip
        made.append(Section(layer, text, strips))
    return made


def _strip(found: Evolution, one: History, names: Mapping[int, str], links: Mapping[int, str]) -> Strip:
    new, patches = set(one.takeovers), []
    for i, (checkpoint, moment) in enumerate(zip(found.checkpoints, one.moments, strict=True)):
        if moment.picture is None:
            patches.append(Patch(np.full((SIDE, SIDE, 3), 128, np.uint8), f"unit {one.unit} at {checkpoint}: silent", f"{checkpoint}: silent"))  # fmt: skip
            continue
        alt = f"unit {one.unit} of {one.layer} at {checkpoint}: {moment.value:.4g} in {names[moment.picture]}"
        caption = f"{checkpoint}: {moment.value:.4g}" + (" · new picture" if i in new else "")
        patches.append(Patch(drawn(moment), alt, caption, links[moment.picture], photo=True))
    at = ", ".join(found.checkpoints[i] for i in one.takeovers)
    word = "epoch " if numbers(found) else ""
    text = f"Another picture took over at {word}{at}." if at else "No other picture took over."
    return Strip(patches, f"Unit {one.unit}", text, "small")


def drawn(moment: Moment) -> Image.Image:
    """Projection above patch, at one scale."""
    assert moment.projection is not None
    assert moment.patch is not None
    projection = render.signed_rgb(moment.projection.transpose(2, 0, 1))
    times = max(1, round(SIDE / max(moment.patch.shape[:2])))
    shown = [Image.fromarray(one) for one in (projection, moment.patch)]
    shown = [one.resize((one.width * times, one.height * times), Image.Resampling.NEAREST) for one in shown]
    return render.below(shown, GAP)


def strongest(found: Evolution, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row per unit and checkpoint."""
    return [
        {
            "layer": one.layer, "unit": one.unit, "checkpoint": name, "activation": moment.value,
            "picture": "" if moment.picture is None else names[moment.picture],
            "cell": "" if moment.cell is None else " ".join(map(str, moment.cell)), "new_picture": i in one.takeovers,
        }
        for one in found.histories
        for i, (name, moment) in enumerate(zip(found.checkpoints, one.moments, strict=True))
    ]  # fmt: skip


def rates(found: Evolution) -> list[dict[str, Any]]:
    """A row per layer and checkpoint."""
    return [
        {
            "layer": layer, "checkpoint": name, "to_last": found.to_last[layer][i], "to_previous": found.to_previous[layer][i],
            "replaced": found.replaced[layer][i], "settled": found.settled(layer) is not None and i >= (found.settled(layer) or 0),
        }
        for layer in found.layers
        for i, name in enumerate(found.checkpoints)
    ]  # fmt: skip
