"""An occlusion study as a page: for every picture five panels, and in words what hiding its parts costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from camlucida import render
from camlucida.errors import InputError, UnsupportedError
from camlucida.geometry import Box
from camlucida.images.read import read_picture
from camlucida.images.sources import Source
from camlucida.maps.deconvnet import DeconvNet
from camlucida.networks.network import Network
from camlucida.probes.occlusion_study import OcclusionStudy, peaks, study_occlusion
from camlucida.report import figures
from camlucida.report.probe_page import Page, Patch, Section, Strip, Table
from camlucida.values import Batch

SIDE = 360  # pixels that a panel's picture has at least along its longer side
CLASS_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442")
"""Okabe and Ito's, which stay apart for the colour-blind; the followed class has the first."""
MAP_OPACITY = 0.7
REST = "#8a8a8a"  # all further classes


@dataclass(frozen=True)
class Studied:
    """One picture: as the network saw it, its boxes in the view, whether its class is the given one, and what came out."""

    source: Source
    picture: Image.Image
    batch: Batch
    given: bool
    boxes: tuple[Box, ...]
    study: OcclusionStudy

    @property
    def seen(self) -> Image.Image:
        """The view."""
        return self.batch.pictures()[0]

    @property
    def drops(self) -> tuple[float, float] | None:
        """Mean drop with an object's centre hidden, and with all objects untouched; None without boxes, or where no place
        does one or the other."""
        if not self.boxes:
            return None
        study = self.study
        hidden = np.any([study.hides(((b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2)) for b in self.boxes], axis=0)
        clear = np.all([study.clears(b) for b in self.boxes], axis=0)
        if not hidden.any() or not clear.any():
            return None
        return float(study.drop[hidden].mean()), float(study.drop[clear].mean())

    @property
    def changed(self) -> float:
        """Share of the places that change the most probable class."""
        return float((self.study.best != self.study.clean_best).mean())

    @property
    def apart(self) -> bool:
        """Whether the square that silences the map most, and the one that costs the class most, do not overlap."""
        first, second = (
            np.unravel_index(int(values.argmin()), values.shape)
            for values in (self.study.activity, self.study.probability)
        )
        grid = self.study.grid
        return any(
            abs(int(a) - int(b)) * s >= e
            for a, b, s, e in zip(first, second, grid.stride, grid.extent, strict=True)
        )


@dataclass
class Gallery:
    """Every picture that was seen, with the highest activation of each map of the layer; None: the first picture's before
    pooling, for all."""

    network: Network
    layer: str | None
    sources: dict[str, Source] = field(default_factory=dict)
    peaks: dict[str, Tensor] = field(default_factory=dict)

    def see(self, source: Source) -> tuple[Image.Image, Batch]:
        """Reads a picture and notes its peaks. Raises InputError."""
        picture = read_picture(source.read(), self.network.card.preprocessing.mean_colour)
        batch = self.network.preprocess(picture, view="whole")
        self.layer = self.layer or self.network.find_layer(None, batch.pixels).name
        if source.name not in self.peaks:
            self.sources[source.name] = source
            self.peaks[source.name] = peaks(self.network, batch.pixels, self.layer)[0]
        return picture, batch

    def strongest(self, unit: int, count: int, without: str) -> list[str]:
        """Names of the pictures that excite a map most, strongest first; earlier ones before equal ones."""
        ranked = sorted(
            (name for name in self.peaks if name != without), key=lambda n: -float(self.peaks[n][unit])
        )
        return ranked[:count]


def studied(
    network: Network, source: Source, picture: Image.Image, batch: Batch, label: int | None, boxes: Sequence[Box],
    layer: str | None, patch: int | None, stride: int | None,
) -> Studied:  # fmt: skip
    study = study_occlusion(network, batch.pixels, label, layer=layer, patch=patch, stride=stride)
    view = batch.views[0]
    assert view is not None
    return Studied(
        source, picture, batch, label is not None, tuple(view.box_to_view(b) for b in boxes), study
    )


def row(one: Studied, network: Network) -> dict[str, Any]:
    """The figures of a picture."""
    study = one.study
    place = np.unravel_index(int(study.drop.argmax()), study.drop.shape)
    middle = [o + s * int(i) for o, s, i in zip(study.grid.offset, study.grid.stride, place, strict=True)]
    hidden, clear = one.drops or (None, None)
    return {
        "path": one.source.name, "class_index": study.label, "class_name": network.card.label(study.label).name,
        "class_from": "given" if one.given else "predicted", "probability": study.clean_probability,
        "predicted": study.clean_best, "predicted_name": network.card.label(study.clean_best).name,
        "largest_drop": float(study.drop.max()), "largest_drop_x": middle[1], "largest_drop_y": middle[0],
        "largest_raise": max(0.0, -float(study.drop.min())), "raising_share": float((study.drop < 0).mean()),
        "changed_share": one.changed, "centre_hidden_drop": hidden, "untouched_drop": clear, "layer": study.layer,
        "unit": study.unit, "activity": study.clean_activity, "activity_least": float(study.activity.min()), "map_elsewhere": one.apart,
        "places": study.drop.size, "patch": int(study.grid.extent[0]), "stride": int(study.grid.stride[0]), "computed": study.note,
    }  # fmt: skip


def together(all_of_them: Sequence[Studied]) -> dict[str, Any]:
    """The figures of all pictures, means over pictures."""
    drops = [one.drops for one in all_of_them if one.drops is not None]
    right = [one.drops for one in all_of_them if one.drops and one.study.label == one.study.clean_best]
    found: dict[str, Any] = {
        "pictures": len(all_of_them), "with_boxes": len(drops),
        "largest_drop": float(np.mean([one.study.drop.max() for one in all_of_them])),
        "largest_raise": float(np.mean([max(0.0, -float(one.study.drop.min())) for one in all_of_them])),
        "changed_share": float(np.mean([one.changed for one in all_of_them])),
        "map_elsewhere": sum(one.apart for one in all_of_them),
    }  # fmt: skip
    for name, some in (("", drops), ("_where_right", right)):
        found[f"centre_hidden_drop{name}"] = float(np.mean([a for a, _ in some])) if some else None
        found[f"untouched_drop{name}"] = float(np.mean([b for _, b in some])) if some else None
        found[f"centre_costs_more{name}"] = sum(a > b for a, b in some)
        found[f"pictures{name or '_counted'}"] = len(some)
    return found


def finding(all_of_them: Sequence[Studied]) -> str:
    """What came out, from the numbers."""
    of = together(all_of_them)
    words = []
    if of["with_boxes"]:
        hidden, clear = of["centre_hidden_drop"], of["untouched_drop"]
        words.append(
            f"Hiding the object's centre costs the class {hidden:.3f} of its probability on average, hiding what lies beside the object {clear:.3f}: "
            f"the centre costs {'more' if hidden > clear else 'no more'} on average, and in {of['centre_costs_more']} of {_pictures(of['with_boxes'])}."
        )
        if of["pictures_where_right"]:
            words.append(
                f"Where the network is right ({of['pictures_where_right']}): {of['centre_hidden_drop_where_right']:.3f} against "
                f"{of['untouched_drop_where_right']:.3f}."
            )
    words.append(
        f"The worst place costs {of['largest_drop']:.3f}, the best one raises the score by {of['largest_raise']:.3f}; "
        f"{of['changed_share']:.0%} of the places change the most probable class (means over {_pictures(of['pictures'])})."
    )
    words.append(
        f"The strongest map looks elsewhere than the decision in {of['map_elsewhere']} of {_pictures(of['pictures'])}: the square that "
        "silences it most does not touch the one that costs the class most."
    )
    return " ".join(words)


def _pictures(count: int) -> str:
    return f"{count} picture{'s' if count != 1 else ''}"


def summary(all_of_them: Sequence[Studied], network: Network, why: str = "") -> Section:
    head = [
        "picture", "class", "clean", "largest drop", "largest raise", "class changed", "centre hidden", "untouched", "map", "looks elsewhere",
    ]  # fmt: skip
    body = []
    for one in all_of_them:
        study, drops = one.study, one.drops or (None, None)
        body.append([
            _short(one.source.name), _name(network, study.label) + ("" if one.given else " (predicted)"), study.clean_probability,
            float(study.drop.max()), max(0.0, -float(study.drop.min())), figures.percent(one.changed), *drops, study.unit, "yes" if one.apart else "no",
        ])  # fmt: skip
    text = (
        "Drop: probability of the class in the clean picture less that with the square; negative where hiding a place raises it. "
        "Centre hidden: mean over the places that cover the centre of a box; untouched: over those that touch none. "
        + why
    )
    return Section("All pictures", text, [Table(head, body)])


def page(
    all_of_them: Sequence[Studied], network: str, sections: Sequence[Section], words: str, told: str, pictures: int
) -> Page:  # fmt: skip
    study = all_of_them[0].study
    sizes = sorted({(int(one.study.grid.extent[0]), int(one.study.grid.stride[0])) for one in all_of_them})
    facts = [
        ("Network", network), ("Layer", study.layer), ("Pictures", str(len(all_of_them))), ("Classes", told),
        ("Square", ", ".join(f"{p} px every {s}" for p, s in sizes)), ("Searched for the map", _pictures(pictures)),
        ("Computed", "; ".join(dict.fromkeys(one.study.note for one in all_of_them))),
    ]  # fmt: skip
    return Page("What hiding each place costs", words, facts, sections)


def section(
    one: Studied, network: Network, gallery: Gallery, top: int, names: Mapping[str, str], link: Callable[[str, Image.Image], str]
) -> Section:  # fmt: skip
    """The five panels of a picture."""
    study, name = one.study, _name(network, one.study.label)
    own = link(names[one.source.name], one.picture)
    seen = _enlarged(one.seen)
    rows, columns = study.activity.shape
    side, step = int(study.grid.extent[0]), int(study.grid.stride[0])
    low, high = render.span(study.drop)
    what = "probability" if network.card.activation != "none" else "score"
    classes = _classes(study)
    panels = [
        Patch(
            _places(one, seen), f"The picture with the {rows * columns} places of the square, drawn at the place that costs most",
            f"(a) {rows} × {columns} places, {side} px every {step}", own, True,
        ),
        Patch(
            _map(seen, study.over_pixels(study.activity), float(study.activity.min()), float(study.activity.max()), "heat"),
            f"Activity of map {study.unit} with each place hidden, from {study.activity.min():.3g} to {study.activity.max():.3g}",
            f"(b) sum of map {study.unit}: {study.activity.min():.3g} to {study.activity.max():.3g}, clean {study.clean_activity:.3g}",
        ),
        Patch(
            _map(seen, study.over_pixels(study.probability), float(study.probability.min()), float(study.probability.max()), "heat"),
            f"{what} of {name} with each place hidden, from {study.probability.min():.3g} to {study.probability.max():.3g}",
            f"(d) {what} of {name}: {study.probability.min():.3g} to {study.probability.max():.3g}, clean {study.clean_probability:.3g}",
        ),
        Patch(
            _map(seen, study.over_pixels(study.drop), low, high, "signed"),
            f"Drop of the {what}: brown where hiding costs, up to {high:.3g}; blue where it raises, down to {low:.3g}",
            f"drop of (d): brown costs, up to {max(high, 0):.3g}; blue raises, by up to {max(0, -low):.3g}, at {figures.percent(float((study.drop < 0).mean()))} of the places",
        ),
        Patch(
            _class_map(one, seen, classes), "Most probable class with each place hidden: "
            + ", ".join(f"{_name(network, c) if c is not None else 'others'} {share:.0%}" for c, _, share in classes),
            "(e) most probable class",
        ),
    ]  # fmt: skip
    legend = Patch(
        _legend([(_name(network, c) if c is not None else "others", k, s) for c, k, s in classes]), "classes"
    )
    blocks = [
        Strip(panels), Strip([legend], size="large"),
        _projections(one, network, gallery, top, names, link),
    ]  # fmt: skip
    known = "" if one.given else " (predicted)"
    right = (
        "" if study.label == study.clean_best else f"; the network says {_name(network, study.clean_best)}"
    )
    return Section(
        f"{_short(one.source.name)}: {name}{known}",
        f"{study.clean_probability:.3g} in the clean picture{right}.",
        blocks,
    )


def _projections(
    one: Studied, network: Network, gallery: Gallery, top: int, names: Mapping[str, str], link: Callable[[str, Image.Image], str]
) -> Strip:  # fmt: skip
    """(c): the map led back to the pixels, here and in the pictures that excite it most."""
    study = one.study
    method = DeconvNet(study.layer, unit=study.unit)
    patches, why = [], ""
    for name in [one.source.name, *gallery.strongest(study.unit, top, one.source.name)]:
        here = name == one.source.name
        try:
            picture, batch = (one.picture, one.batch) if here else gallery.see(gallery.sources[name])
        except InputError as error:  # it could be read a moment ago
            why = f" {name}: {error}."
            continue
        shown = batch.pictures()[0]
        images = [shown]
        try:
            made = method(network, batch)
            assert made.windows is not None
            (y0, y1), (x0, x1) = made.windows[0]
            images = [shown.crop((x0, y0, x1, y1)), made.picture(0, "window")]
        except UnsupportedError as error:
            why = f" No projection: {error}."
        sheet = render.below([render.fitted(image.convert("RGB"), 192) for image in images], 4)
        peak = float(gallery.peaks[name][study.unit])
        words = f"{_short(name)}: what map {study.unit} sees at its strongest place, and its projection to the pixels"
        patches.append(
            Patch(
                sheet,
                words,
                f"{'this picture' if here else _short(name)}: {peak:.3g}",
                link(names[name], picture),
            )
        )
    text = (
        f"Map {study.unit} of {study.layer}, the one with the largest sum in the clean picture, led back to the pixels from its strongest "
        f"place by deconvnet: here, and in the pictures that excite it most, with that activation. Grey is zero.{why}"
    )
    return Strip(patches, "(c) What the map answers to", text, "small")


def arrays(all_of_them: Sequence[Studied], names: Mapping[str, str]) -> dict[str, NDArray]:
    """`NAME/activity`, `NAME/probability`, `NAME/best`: over the places of each picture."""
    return {
        f"{names[one.source.name]}/{what}": getattr(one.study, what)
        for one in all_of_them
        for what in ("activity", "probability", "best")
    }


# --- drawing -------------------------------------------------------------------------------------------------


def _short(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _name(network: Network, index: int) -> str:
    return network.card.label(index).name.split(",")[0]


def _enlarged(picture: Image.Image) -> Image.Image:
    """At least `SIDE` pixels, in whole steps."""
    factor = max(1, -(-SIDE // max(picture.size)))
    return picture.convert("RGB").resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC
    )


def _places(one: Studied, seen: Image.Image) -> Image.Image:
    study, made = one.study, seen.copy()
    draw, factor = ImageDraw.Draw(made), seen.width / one.seen.width
    grid = study.grid
    for box in one.boxes:
        draw.rectangle([c * factor for c in box.corners], outline=render.TRUTH, width=3)
    worst = np.unravel_index(int(study.drop.argmax()), study.drop.shape)
    middle = [(o + s * int(i)) * factor for o, s, i in zip(grid.offset, grid.stride, worst, strict=True)]
    half = [e * factor / 2 for e in grid.extent]
    grey = one.batch.preprocessing.mean_colour if one.batch.preprocessing else (124, 116, 104)
    square = [middle[1] - half[1], middle[0] - half[0], middle[1] + half[1] - 1, middle[0] + half[0] - 1]
    draw.rectangle(square, fill=grey, outline="white", width=2)
    ys, xs = (
        [(o + s * i) * factor for i in range(n)]
        for o, s, n in zip(grid.offset, grid.stride, study.drop.shape, strict=True)
    )
    for y in ys:
        for x in xs:
            draw.ellipse([x - 1.5, y - 1.5, x + 1.5, y + 1.5], fill="white", outline="black")
    return made


def _map(seen: Image.Image, values: NDArray, low: float, high: float, colours: str) -> Image.Image:
    """A map over the pixels of the view, painted on it with its bar; what no square covered stays grey."""
    factor = seen.width // values.shape[1]
    values = np.kron(values, np.ones((factor, factor), np.float32))
    picture = np.asarray(seen)
    known = np.isfinite(values)
    made = render.painted(
        picture,
        np.where(known, values, 0.0 if colours == "signed" else low),
        low,
        high,
        colours=colours,
        opacity=MAP_OPACITY,
    )
    grey = np.repeat(picture.mean(2, keepdims=True), 3, 2).astype(np.uint8)
    return render.captioned(np.where(known[..., None], made, grey), "", bar=(low, high), colours=colours)


def _classes(study: OcclusionStudy) -> list[tuple[int | None, str, float]]:
    """Classes with their colours and shares of the places: the followed one first, then the most frequent; None: the rest."""
    counts = Counter(study.best.ravel().tolist())
    ranked = [study.label, *(c for c, _ in counts.most_common() if c != study.label)]
    shown = ranked[: len(CLASS_COLOURS)]
    found: list[tuple[int | None, str, float]] = [
        (c, colour, counts[c] / study.best.size) for c, colour in zip(shown, CLASS_COLOURS, strict=False)
    ]
    rest = sum(counts[c] for c in ranked[len(CLASS_COLOURS) :])
    return [*found, (None, REST, rest / study.best.size)] if rest else found


def _class_map(
    one: Studied, seen: Image.Image, classes: Sequence[tuple[int | None, str, float]]
) -> NDArray[np.uint8]:
    """Each place's class around its centre, over the grey picture."""
    study, picture = one.study, np.asarray(seen).astype(np.float64)
    table = {c: [int(k[i : i + 2], 16) for i in (1, 3, 5)] for c, k, _ in classes}
    rest = table.get(None, [138, 138, 138])
    colours = np.array([[table.get(c, rest) for c in line] for line in study.best.tolist()], np.float64)
    cells, inside = [], []
    for length, view, o, s, n in zip(
        picture.shape[:2],
        study.grid.view,
        study.grid.offset,
        study.grid.stride,
        study.best.shape,
        strict=True,
    ):
        at = ((np.arange(length) + 0.5) * (view / length) - o) / s
        cells.append(np.clip(np.rint(at), 0, n - 1).astype(np.int64))
        inside.append((at >= -0.5) & (at <= n - 0.5))
    laid = colours[cells[0][:, None], cells[1][None]]
    grey = np.repeat(picture.mean(2, keepdims=True), 3, 2)
    known = (inside[0][:, None] & inside[1][None])[..., None]
    return np.rint(np.where(known, 0.3 * grey + 0.7 * laid, grey)).astype(np.uint8)


def _legend(entries: Sequence[tuple[str, str, float]]) -> str:
    """Names beside their colours, with shares of the places."""
    height = 22 * len(entries) + 4
    parts = "".join(
        f'<rect x="2" y="{22 * i + 4}" width="15" height="15" style="fill: {colour}; stroke: none"/>'
        f'<text x="26" y="{22 * i + 16}">{escape(name[:44])} · {share:.1%} of the places</text>'
        for i, (name, colour, share) in enumerate(entries)
    )
    words = escape("Classes: " + "; ".join(f"{name} {share:.1%}" for name, _, share in entries))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 {height}" role="img" aria-label="{words}" font-family="sans-serif" '
        f'font-size="12" fill="currentColor">{parts}</svg>'
    )
