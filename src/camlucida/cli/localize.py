"""Classify photographs, show where each class is seen, draw the box: a result folder and a page.

The whole of each picture is looked at. PHOTOS are files, folders, globs, zip or tar archives, or manifests.

  camlucida localize photos/ --out seen/                                    the network in the package
  camlucida localize photos/ --out seen/ --network mine.safetensors         a trained or packed one
  camlucida localize photos/ --out seen/ --boxes fraction-of-max:threshold=0.3,components=all
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from camlucida.cli import choices

if TYPE_CHECKING:
    from camlucida.images.sources import Source
    from camlucida.values import Box

PART = 128  # pictures a part of the result holds


@dataclass(frozen=True)
class Options:
    photos: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
    """Files, folders, globs, zip or tar archives (also ARCHIVE.zip/folder), manifests (CSV, JSON lines, Parquet)."""
    out: str
    """Folder for the results; made if it is not there."""
    network: choices.Chosen = choices.DEFAULT
    top: int = 5
    """How many classes of each picture to localize."""
    method: str = "auto"
    """cam, grad-cam, grad-cam++, xgrad-cam, hires-cam, element-wise-grad-cam, layer-cam, eigen-cam, eigen-grad-cam, full-grad, bag-cam, pc1, occlusion, score-cam, ablation-cam, rise, saliency, smooth-grad, captum; with options as occlusion:patch=16,stride=4. auto: CAM where the head allows it, else Grad-CAM."""
    boxes: str = "auto"
    """fraction-of-max, quantile, fixed-level, tight-loose, graph-cut; as fraction-of-max:threshold=0.3,components=all. auto: the card's."""
    threshold: float | None = None
    """The rule's threshold: share of the map's maximum, quantile or level."""
    views: str = "auto"
    """Views merged into one map: 1, flip, scales, flip+scales, flip+0.75+1 (zooms), ten-crop (the CAM paper's), crops. auto: what the card was tuned with. For the embedded network flip+0.75+1 takes 4 passes and brings 3 points of top-1 and of localization."""
    batch: int = 32
    """Pictures a forward pass; results are equal for equal batches."""
    memory: str | None = None
    """Most that the tensors of one pass may take in occlusion, Score-CAM, Ablation-CAM and RISE, as 500MB or 2GiB; it is halved where memory runs out. By default half of a GPU's; on a CPU 40 MB, beyond which it gets slower."""
    part: int | None = None
    """Pictures a part of the result holds, 128 unless told: what a kill loses at most. Results are equal for equal parts."""
    max_pixels: int = 89_478_485
    """Pictures of more pixels are rejected, before they are unpacked; raise it for large pictures that you trust."""
    workers: int = 2
    """Threads that read pictures."""
    truth: str | None = None
    """Manifest with given boxes (path, x0, y0, x1, y1), drawn in green."""
    corners: Literal["half-open", "inclusive"] = "half-open"
    """How the boxes of --truth are written."""
    overlays: str = "1000"
    """Overlay pictures are written for this many pictures; all, or 0 for none."""
    csv: bool = False
    """Also write localizations.csv."""
    json: bool = False
    """Print the rows as JSON lines instead of the table."""
    resume: bool = False
    """Go on with the results in --out where an earlier run stopped."""
    overwrite: bool = False
    """Replace the results of an earlier run in --out."""


def run(options: Options, command: Sequence[str]) -> int:
    import hashlib
    import sys
    from contextlib import suppress
    from pathlib import Path

    from camlucida import pipeline, report
    from camlucida.cli import progress
    from camlucida.errors import CamlucidaError, UsageError
    from camlucida.images import sources

    size = PART if options.part is None else options.part
    for name, low in (("top", 1), ("batch", 1), ("workers", 1), ("part", 1), ("max_pixels", 1)):
        if (size if name == "part" else getattr(options, name)) < low:
            raise UsageError(f"--{name.replace('_', '-')}", got=getattr(options, name), allowed=f"≥ {low}")
    if not options.overlays.isdigit() and options.overlays != "all":
        raise UsageError("--overlays", got=repr(options.overlays), allowed="a number, or all")
    listing = sources.expand(options.photos)
    if not listing.sources:
        raise UsageError(
            f"no pictures in {', '.join(options.photos)}",
            got=f"{listing.others} other files",
            allowed="JPEG, PNG, WebP, TIFF, BMP, GIF",
        )
    net = choices.network(options.network)
    plan = pipeline.plan(
        net, top=options.top, method=options.method, boxes=options.boxes, views=options.views
    )
    plan = replace(
        plan, rule=choices.at_threshold(plan.rule, options.threshold), max_pixels=options.max_pixels
    )
    given = _truth(options, listing.sources) if options.truth else {}

    inputs = hashlib.sha256(
        "\0".join(s.name for s in listing.sources).encode("utf-8", "surrogatepass")
    ).hexdigest()
    settings = {
        "network": net.card.name, "network_sha256": net.card.sha256, "weights": options.network.weights, "labels": options.network.labels,
        "preprocessing": asdict(net.card.preprocessing), "card_sha256": hashlib.sha256(net.card.to_json().encode()).hexdigest(), "method": plan.method_name,
        "rule": plan.rule_name, "views": str(plan.views), "top": options.top, "batch": options.batch, "precision": options.network.precision,
        "part_size": size, "max_pixels": options.max_pixels, "inputs": len(listing.sources), "inputs_sha256": inputs, "truth": options.truth,
    }  # fmt: skip
    manifest = {"command": list(command), "settings": settings, **choices.provenance(net), "seeds": {}}
    keep = None if options.overlays == "all" else int(options.overlays)
    names = dict(zip((s.name for s in listing.sources), sources.unique_names(listing.sources), strict=True))
    parts = [listing.sources[i : i + size] for i in range(0, len(listing.sources), size)]
    with report.alone(options.out):
        folder = report.ResultFolder.open(
            Path(options.out), manifest, resume=options.resume, overwrite=options.overwrite, overlays=keep
        )
        done = set(range(len(parts))) if folder.done else folder.done_parts()
        try:
            with choices.perturbing(options.memory), progress.bar("pictures", len(listing.sources)) as bar:
                for index, part in enumerate(parts):
                    if index in done:
                        bar(len(part))
                        continue
                    boxes = [given.get(s.name, ()) for s in part]
                    with folder.part(index, names) as add:
                        for one in pipeline.look(
                            plan, part, batch=options.batch, workers=options.workers, truth=boxes
                        ):
                            add(one)
                            bar(1)
        except KeyboardInterrupt:
            with suppress(CamlucidaError):  # it only notes the time
                folder.interrupted()
            raise
        finished = folder.finish(net.card.labels, csv=options.csv)
    _show(Path(options.out), options.json)
    counts = finished["counts"]
    note = (
        "; Grad-CAM, because the head is not pooling → linear" if _fell_back(plan, Path(options.out)) else ""
    )
    others = f", {listing.others} other files passed over" if listing.others else ""
    print(f"{counts['pictures']} pictures, {counts['rejected']} rejected{others}{note}", file=sys.stderr)
    print(str((Path(options.out) / "report.html").resolve()), file=sys.stderr if options.json else sys.stdout)
    return 3 if counts["rejected"] else 0


def _truth(options: Options, listed: Sequence[Source]) -> dict[str, tuple[Box, ...]]:
    """Given boxes of each picture, matched by the path as listed, below its input, or beside the manifest."""
    from collections import defaultdict
    from pathlib import Path

    from camlucida.errors import UsageError
    from camlucida.images import manifests

    boxes: dict[str, list[Box]] = defaultdict(list)
    file = Path(options.truth or "")
    for row in manifests.read(file, options.corners):
        if row.box:
            boxes[row.path].append(row.box)
            boxes[str((file.parent / row.path).resolve())].append(row.box)
    found = {}
    for source in listed:
        for key in (
            source.name,
            source.relative,
            str(Path(source.file).resolve()) if source.member is None else source.member,
        ):
            if key in boxes:
                found[source.name] = tuple(dict.fromkeys(boxes[key]))
                break
    if not found:
        raise UsageError(
            f"none of the boxes in {file} belongs to a listed picture",
            got=f"{len(boxes)} paths",
            do="write paths as listed, or relative to the manifest",
        )
    return found


def _fell_back(plan: Any, out: Any) -> bool:
    if plan.method is not None:
        return False
    first = next(iter(_rows(out)), None)
    return first is not None and str(first["map_method"]).startswith("grad-cam")


def _rows(out: Any) -> Any:
    import pyarrow.parquet

    for file in sorted((out / "localizations").glob("part-*.parquet")):
        yield from pyarrow.parquet.read_table(file).to_pylist()


def _show(out: Any, as_json: bool) -> None:
    import json
    from pathlib import PurePath

    if as_json:
        for row in _rows(out):
            print(json.dumps(row, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    from camlucida.report.figures import sure

    table = Table(box=None, pad_edge=False)
    for column in ("picture", "top class", "probability", "box (x0, y0, x1, y1)"):
        table.add_column(column, justify="right" if column == "probability" else "left")
    shown, probabilities = 0, True
    for row in _rows(out):
        if row["rank"] == 1 and row["box_index"] in (0, None):
            if shown == 20:
                table.add_row("…", "", "", "")
                break
            box = "" if row["x0"] is None else ", ".join(f"{row[c]:.0f}" for c in ("x0", "y0", "x1", "y1"))
            table.add_row(
                PurePath(row["path"]).name,
                row["class_name"].split(",")[0],
                sure(row["probability"], row["logit"]),
                box + ("" if row["status"] == "ok" else f"  ({row['status']})"),
            )
            shown += 1
            probabilities &= row["probability"] is not None
    if not probabilities:
        table.columns[2].header = "score"
    Console(soft_wrap=True).print(table)
