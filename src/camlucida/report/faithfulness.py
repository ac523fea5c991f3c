"""May a map be believed: methods ranked for one network and data set, as a page, rows and figures."""

from __future__ import annotations

import base64
import csv
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from camlucida import render
from camlucida.errors import CamlucidaError, UsageError
from camlucida.evaluate.faithfulness import METRICS, Explainer, Row
from camlucida.evaluate.faithfulness.measure import Account
from camlucida.evaluate.faithfulness.pictures import PART, Part, read_whole
from camlucida.evaluate.predictions import utf8
from camlucida.images.datasets import evenly
from camlucida.images.sources import Source
from camlucida.networks.cards import Card
from camlucida.networks.network import Network
from camlucida.report import figures, page
from camlucida.report.faithfulness_curves import curve_svg, legend
from camlucida.report.writing import replacing

PAGE, PARTS = "report.html", "faithfulness-parts"
LONGEST = 320  # pixels of the longer side of a picture on the page
REJECTED_SHOWN = 200
ARROWS = {"higher": " ↑", "lower": " ↓", "zero": " → 0"}
SCHEMA = pyarrow.schema(
    [
        ("picture", pyarrow.int32()), ("path", pyarrow.string()), ("class_index", pyarrow.int32()),
        ("class_name", pyarrow.string()), ("probability", pyarrow.float32()), ("method", pyarrow.string()),
        ("metric", pyarrow.string()), ("value", pyarrow.float64()), ("curve", pyarrow.list_(pyarrow.float32())),
    ]
)  # fmt: skip

PART_SCHEMA = pyarrow.schema(  # as measured, so that what is resumed is what was
    [
        ("picture", pyarrow.int64()), ("class_index", pyarrow.int64()), ("probability", pyarrow.float64()),
        ("method", pyarrow.string()), ("metric", pyarrow.string()), ("value", pyarrow.float64()),
        ("curve", pyarrow.list_(pyarrow.float64())),
    ]
)  # fmt: skip


class Parts:
    """The rows of a run, part by part; with a folder, each part is saved in `PARTS` there as soon as it is measured, and
    `resume` takes up those of a run of the same `about`. Raises UsageError where they are of another run."""

    def __init__(
        self,
        folder: Path | None,
        about: Mapping[str, Any],
        names: Sequence[str],
        account: Account,
        resume: bool,
    ) -> None:
        self.folder = folder / PARTS if folder else None
        self.account = account
        self.key = json.dumps({**about, "pictures": zlib.crc32("\n".join(names).encode("utf-8", "replace"))}, sort_keys=True)  # fmt: skip
        self.rows: list[Row] = []
        self.rejected: list[tuple[str, str]] = []
        self.pictures = 0
        for before in self.folder.glob("part-*.parquet") if self.folder and not resume else ():
            before.unlink()
        while self.folder and (file := self._file(self.pictures)).is_file() and self.pictures < len(names):
            self._take(file)

    def _file(self, first: int) -> Path:
        assert self.folder is not None
        return self.folder / f"part-{first // PART:05d}.parquet"

    def _take(self, file: Path) -> None:
        try:
            table = pyarrow.parquet.read_table(file)
        except (OSError, pyarrow.ArrowException) as error:
            raise UsageError(f"--resume: cannot read {file}", got=str(error), do="remove it, or leave --resume out") from error  # fmt: skip
        said = json.loads((table.schema.metadata or {}).get(b"camlucida", b"{}"))
        if said.get("key") != self.key:
            raise UsageError(
                f"--resume {file.parent.parent}", got="a run with other pictures or options",
                do="give those of the run that was stopped, or leave --resume out",
            )  # fmt: skip
        for one in table.to_pylist():
            one["curve"] = None if one["curve"] is None else tuple(one["curve"])
            self.rows.append(Row(**one))
        self.rejected += [(path, why) for path, why in said["rejected"]]
        self.account.failed |= said["failed"]
        self.account.layers |= {check: tuple(layers) for check, layers in said["layers"].items()}
        self.pictures += said["pictures"]

    def add(self, part: Part) -> None:
        if self.folder:
            said = {
                "key": self.key, "pictures": part.pictures, "rejected": part.rejected, "failed": self.account.failed,
                "layers": self.account.layers,
            }  # fmt: skip
            table = pyarrow.Table.from_pylist([asdict(row) for row in part.rows], PART_SCHEMA)
            table = table.replace_schema_metadata({b"camlucida": json.dumps(said).encode()})
            with replacing(self._file(self.pictures)) as temporary:
                pyarrow.parquet.write_table(table, temporary)
        self.rows += part.rows
        self.rejected += part.rejected
        self.pictures += part.pictures


def cost(account: Account, methods: Sequence[str]) -> dict[str, float]:
    """Computing time of each method's maps, in forward passes over the same pictures; of what this run measured itself."""
    if not account.forward:
        return {}
    return {name: round(account.seconds[name] / account.forward, 2) for name in methods if name in account.seconds}  # fmt: skip


def ranking(report: Mapping[str, Any]) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Columns and rows of the table: mean rank, cost, and the metrics that rank; methods, best first."""
    return _table(report, [m for m, one in report["metrics"].items() if one["ranks"]], True)


def _table(
    report: Mapping[str, Any], metrics: Sequence[str], first: bool
) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    columns = [
        {"title": report["metrics"][m]["title"], "arrow": ARROWS[report["metrics"][m]["better"]], "about": report["metrics"][m]["about"]}
        for m in metrics
    ]  # fmt: skip
    rows = []
    for place, entry in enumerate(report["ranking"], 1):
        name = entry["method"]
        cells = [_cell(report["figures"][name].get(m)) for m in metrics]
        if first:
            spread = entry["interval"]
            mean = "–" if entry["mean_rank"] is None else f"{entry['mean_rank']:.2f}"
            rank = {"value": mean, "interval": f"{spread[0]:.2f} … {spread[1]:.2f}" if spread else "", "mark": "", "best": False}  # fmt: skip
            price = report["cost"].get(name)
            cells = [rank, {"value": "–" if price is None else f"{price:.1f}", "interval": "", "mark": "", "best": False}, *cells]  # fmt: skip
        rows.append({"name": name, "place": place, "baseline": name in report["baselines"], "cells": cells})
    own = [
        {"title": "Mean rank", "arrow": "", "about": "over the metrics of this table; 1 is best"},
        {"title": "Cost", "arrow": "", "about": "computing time of the maps, in forward passes over the same pictures"},
    ]  # fmt: skip
    return (own if first else []) + columns, rows


def _cell(figure: Mapping[str, Any] | None) -> dict[str, Any]:
    if figure is None:
        return {"value": "–", "interval": "", "mark": "", "best": False}
    low, high = figure["interval"]
    mark = "" if figure.get("against_random", "better") == "better" else "*"
    return {"value": f"{figure['mean']:.3f}", "interval": f"{low:.3f} … {high:.3f}", "mark": mark, "best": figure["rank"] == 1}  # fmt: skip


def save(
    report: Mapping[str, Any], rows: Sequence[Row], pictures: Sequence[Source], card: Card, rejected: Sequence[tuple[str, str]],
    shown: Sequence[Mapping[str, Any]], folder: Path,
) -> None:  # fmt: skip
    """Writes faithfulness.json, faithfulness.parquet (a row for each picture, method and metric), rejected.csv and
    report.html."""
    columns = {
        "picture": [r.picture for r in rows], "path": [utf8(pictures[r.picture].name) for r in rows],
        "class_index": [r.class_index for r in rows], "class_name": [card.label(r.class_index).name for r in rows],
        "probability": [r.probability for r in rows], "method": [r.method for r in rows], "metric": [r.metric for r in rows],
        "value": [r.value for r in rows], "curve": [r.curve for r in rows],
    }  # fmt: skip
    with replacing(folder / "faithfulness.parquet") as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=SCHEMA), temporary)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([("path", "reason"), *rejected])
    texts = {
        "faithfulness.json": json.dumps(report, indent=1, allow_nan=False) + "\n", "rejected.csv": stream.getvalue(),
        PAGE: write(report, shown, rejected),
    }  # fmt: skip
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")


def pictures(
    network: Network, explainers: Mapping[str, Explainer], order: Sequence[Mapping[str, Any]], sources: Sequence[Source],
    count: int, *, max_pixels: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """For pictures spread evenly over the set (nobody picked them) the map of the predicted class by each method, best
    first, as the network saw them: rows of a title and panels."""
    rows = []
    for source in evenly(sources, count):
        batch = read_whole(network, source, max_pixels)
        if isinstance(batch, str):
            continue  # it was there a moment ago
        logits = network(batch)
        classes = logits.argmax(1)
        name = network.card.label(int(classes[0])).name.split(",")[0]
        sure = float(network.probabilities(logits)[0, classes[0]])
        (picture,) = batch.pictures()
        panels = [_panel(picture, "the picture")]
        for entry in order:
            try:
                heat = explainers[entry["method"]](network, batch, classes)[0]
            except CamlucidaError:  # its figures are there; the page stands without this panel
                continue
            panels.append(_panel(picture, entry["method"], torch.nan_to_num(heat).cpu().numpy()))
        rows.append({"title": f"{name} {100 * sure:.0f} %, {Path(source.relative).name}", "panels": panels})
    return rows


def write(
    report: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], rejected: Sequence[tuple[str, str]] = ()
) -> str:
    """The whole page: one file, nothing fetched."""
    facts = [
        ("Pictures", f"{report['pictures']}, each with the class that the network predicts"),
        ("Data", f"{', '.join(Path(d).name for d in report['data'])}, split {report['split']}"),
        ("Step of deletion and insertion", f"{report['step']:g} pixels of 224 × 224"),
        ("Seed", str(report["seed"])),
    ]
    facts += [(f"Left out: {name}", why) for name, why in report["failed"].items()]
    others = [m for m, one in report["metrics"].items() if not one["ranks"]]
    names = [entry["method"] for entry in report["ranking"]]
    heat = render.palette("heat", 15)
    context = {
        "report": report, "facts": facts, "command": page.command_line(report["command"]), "ranking": ranking(report),
        "others": _table(report, others, False) if others else None, "names": names, "legend": Markup(legend(names, report["baselines"])),
        "charts": [
            {"title": title, "about": about, "svg": Markup(curve_svg(report["curves"][metric], names, report["baselines"], title, ends))}
            for metric, title, about, ends in _charts(report)
        ],
        "shown": shown, "rejected": list(rejected)[:REJECTED_SHOWN], "rejected_total": len(rejected),
        "bar": ", ".join("#{:02x}{:02x}{:02x}".format(*c) for c in heat),
    }  # fmt: skip
    return page.environment().get_template("faithfulness.html.j2").render(context)


def _charts(report: Mapping[str, Any]) -> list[tuple[str, str, str, Sequence[str]]]:
    """Metric, title, what is drawn, and words along the axis, first to last."""
    shares = ["0 %", "25 %", "50 %", "75 %", "100 %"]
    road = [f"{p} %" for p in range(10, 100, 10)]
    found = [
        ("deletion", "Deletion", "Probability while pixels go, the map’s highest first. Lower is better.", shares),
        ("insertion", "Insertion", "Probability while pixels come into the blurred picture, the map’s highest first. Higher is better.", shares),
        ("road-morf", "ROAD, most relevant first", "Probability with so many pixels replaced by what their neighbours say. Lower is better.", road),
        ("road-lerf", "ROAD, least relevant first", "The same, the map’s lowest first. Higher is better.", road),
    ]  # fmt: skip
    for check, about in (("cascading", "all layers above it"), ("independent", "no other layer")):
        names = [str(i + 1) for i in range(len(report["layers"].get(check, ())))]
        for kind, words in (("spearman", "rank correlation"), ("ssim", "SSIM")):
            found.append(
                (f"{check}-{kind}", f"{METRICS[f'{check}-{kind}'].title}", f"{words[0].upper()}{words[1:]} with the map of the network in which a layer, and {about}, is random. A sound map falls towards 0.", names)
            )  # fmt: skip
    return [one for one in found if one[0] in report["curves"]]


def _panel(picture: Image.Image, words: str, heat: NDArray[np.float32] | None = None) -> dict[str, str]:
    """A picture, under its map if there is one."""
    rgb, _ = figures.sized(picture, LONGEST)
    over = rgb if heat is None else render.overlay(rgb, figures.stretched(heat, *rgb.shape[:2]))
    stream = io.BytesIO()
    Image.fromarray(over).save(stream, "JPEG", quality=84)
    data = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    alt = words if heat is None else f"map by {words}"
    return {
        "data": data,
        "alt": alt,
        "words": words,
        "width": str(over.shape[1]),
        "height": str(over.shape[0]),
    }
