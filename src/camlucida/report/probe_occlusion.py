"""An occlusion study as a page: for every picture five panels, and in words what hiding its parts costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
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
from camlucida.report import occlusion_panels as panels
from camlucida.report.probe_page import Page, Patch, Section, Strip, Table
from camlucida.values import Batch


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
        """Names of the pictures that excite a map most, strongest first, earlier ones before equal ones; of those alone in
        which it is above zero."""
        found = {name: float(of[unit]) for name, of in self.peaks.items() if name != without and of[unit] > 0}
        return sorted(found, key=lambda name: -found[name])[:count]


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
    seen = panels.enlarged(one.seen)
    rows, columns = study.activity.shape
    side, step = int(study.grid.extent[0]), int(study.grid.stride[0])
    low, high = render.span(study.drop)
    what = "probability" if network.card.activation != "none" else "score"
    classes = panels.classes(study)
    grey = one.batch.preprocessing.mean_colour if one.batch.preprocessing else (124, 116, 104)
    five = [
        Patch(
            panels.places(seen, study, one.boxes, grey), f"The picture with the {rows * columns} places of the square, drawn at the place that costs most",
            f"(a) {rows} × {columns} places, {side} px every {step}", own, True,
        ),
        Patch(
            panels.painted(seen, study.over_pixels(study.activity), float(study.activity.min()), float(study.activity.max()), "heat"),
            f"Activity of map {study.unit} with each place hidden, from {study.activity.min():.3g} to {study.activity.max():.3g}",
            f"(b) sum of map {study.unit}: {study.activity.min():.3g} to {study.activity.max():.3g}, clean {study.clean_activity:.3g}",
        ),
        Patch(
            panels.painted(seen, study.over_pixels(study.probability), float(study.probability.min()), float(study.probability.max()), "heat"),
            f"{what} of {name} with each place hidden, from {study.probability.min():.3g} to {study.probability.max():.3g}",
            f"(d) {what} of {name}: {study.probability.min():.3g} to {study.probability.max():.3g}, clean {study.clean_probability:.3g}",
        ),
        Patch(
            panels.painted(seen, study.over_pixels(study.drop), low, high, "signed"),
            f"Drop of the {what}: brown where hiding costs, up to {high:.3g}; blue where it raises, down to {low:.3g}",
            f"drop of (d): brown costs, up to {max(high, 0):.3g}; blue raises, by up to {max(0, -low):.3g}, at {figures.percent(float((study.drop < 0).mean()))} of the places",
        ),
        Patch(
            panels.class_map(seen, study, classes), "Most probable class with each place hidden: "
            + ", ".join(f"{_name(network, c) if c is not None else 'others'} {share:.0%}" for c, _, share in classes),
            "(e) most probable class",
        ),
    ]  # fmt: skip
    legend = Patch(
        panels.legend([(_name(network, c) if c is not None else "others", k, s) for c, k, s in classes]),
        "classes",
    )
    blocks = [
        Strip(five), Strip([legend], size="large"),
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


def _short(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _name(network: Network, index: int) -> str:
    return network.card.label(index).name.split(",")[0]
