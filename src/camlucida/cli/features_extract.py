"""Pictures → vectors: the average of a network's last map (or of any layer's), one row a picture.

  camlucida features extract pictures/ --out vectors/                                 the network in the package
  camlucida features extract pictures/ --out vectors/ --scales 96 128 160 --flips     averaged; --combine stack: side by side
  camlucida features extract pictures/ --network vgg-d.safetensors --layer penultimate --scales 256 384 512 --combine stack --out vectors/
  camlucida features extract VOC2012/ --region picture+box --out vectors/             a row an object: picture and box stacked

--out then holds features.npy (read it with numpy.load(…, mmap_mode="r")), pictures.parquet (row, path, labels, splits),
rejected.csv and manifest.json. DATA are as in camlucida evaluate: folders of class folders, manifests, published data
sets. A run that was stopped goes on with --resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from camlucida.cli import choices

if TYPE_CHECKING:
    from camlucida.images.datasets import DataSet


@dataclass(frozen=True)
class Options:
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Zips or folders of class folders, manifests, published data sets; with --unlabelled any pictures."""
    out: str
    """Folder for the vectors; made if it is not there."""
    network: choices.Chosen = choices.DEFAULT
    layer: str | None = None
    """Layer whose average is taken (camlucida layers lists them); penultimate: what the dense network gives before its last layer, after the ReLU. By default the map before the head's pooling."""
    scales: tuple[int, ...] = ()
    """Shorter sides that pictures are shown at; by default the card's."""
    combine: Literal["average", "stack"] = "average"
    """What becomes of several scales: their mean, or one vector after the other."""
    flips: bool = False
    """Average each view with its mirror image."""
    region: Literal["picture", "box", "picture+box"] = "picture"
    """The whole picture; or a row for each annotated object: its box cut out, or picture and box stacked."""
    margin: float = 0.0
    """Added around boxes, a share of their sides."""
    unlabelled: bool = False
    """DATA are pictures without labels, as camlucida localize takes them."""
    subset: str | None = None
    """Published split to read; without it all, and features svm knows them apart."""
    corners: Literal["half-open", "inclusive"] | None = None
    """How boxes are written, as in camlucida evaluate."""
    limit: int | None = None
    """Only this many pictures, spread evenly over the set."""
    batch: int = 64
    """Pictures a forward pass; results are equal for equal batches."""
    workers: int = 2
    """Threads that read pictures."""
    max_pixels: int = 89_478_485
    """As in camlucida localize."""
    parquet: bool = False
    """Also write features.parquet: the table of rows with the vectors in it."""
    resume: bool = False
    """Go on in --out where an earlier run stopped."""
    overwrite: bool = False
    """Replace the vectors in --out."""
    json: bool = False
    """Print what was written as JSON."""


def run(options: Options, command: Sequence[str]) -> int:
    import hashlib
    import json
    import sys
    import time
    from itertools import islice
    from pathlib import Path

    from camlucida.cli import progress
    from camlucida.errors import UsageError
    from camlucida.features import Descriptor, Extractor, FeatureFolder, Wanted
    from camlucida.report.save import alone

    for name in ("batch", "workers", "max_pixels"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')}", got=getattr(options, name), allowed="≥ 1")
    if not options.data:
        raise UsageError("DATA", got="nothing", do="name what is to be read")
    data = _data(options)
    for note in data.notes:
        print(note, file=sys.stderr)
    how = Descriptor(options.layer, options.scales, options.combine, options.flips, options.region, options.margin)  # fmt: skip
    rows = [(Wanted(e.source), e) for e in data.examples]
    if options.region != "picture":
        rows = [(Wanted(e.source, box), own) for e in data.examples for box, own in _objects(e)]
    net = choices.network(options.network)
    extractor = Extractor(net, how)
    listed = "\0".join(f"{w.source.name}{w.box.corners if w.box else ''}" for w, _ in rows)
    settings = {
        "descriptor": asdict(how), "network_sha256": extractor.sha256, "preprocessing": asdict(net.card.preprocessing), "batch": options.batch,
        "slice": extractor.slice, "precision": options.network.precision, "max_pixels": options.max_pixels, "inputs": len(rows),
        "inputs_sha256": hashlib.sha256(listed.encode("utf-8", "surrogatepass")).hexdigest(),
    }  # fmt: skip
    about = {"command": list(command), "network": asdict(options.network), "data": list(options.data), **choices.provenance(net)}  # fmt: skip
    paths = [w.source.name if w.box is None else f"{w.source.name}#{','.join(f'{v:g}' for v in w.box.corners)}" for w, _ in rows]  # fmt: skip
    start = time.monotonic()
    with alone(options.out):
        folder = FeatureFolder.open(
            options.out, extractor.blocks, settings, about, resume=options.resume, overwrite=options.overwrite
        )
        before = folder.done
        with progress.bar("pictures", len(rows)) as bar:
            bar(before)
            stream = extractor(
                [w for w, _ in rows[before:]],
                batch=options.batch,
                workers=options.workers,
                max_pixels=options.max_pixels,
            )
            while described := list(islice(stream, extractor.slice)):
                folder.add(described)
                bar(len(described))
        if folder.manifest.get("state") != "done":
            folder.finish(paths, [e for _, e in rows], data.labels, parquet=options.parquet)
    seconds = time.monotonic() - start
    found = {
        "rows": folder.manifest["rows"], "width": folder.width, "rejected": folder.manifest["rejected"],
        "blocks": [asdict(block) for block in extractor.blocks], "seconds": round(seconds, 3), "out": str(Path(options.out).resolve()),
    }  # fmt: skip
    for _, path, why in folder.rejected[:20]:
        print(f"rejected {path}: {why}", file=sys.stderr)
    print(json.dumps(found) if options.json else f"{found['rows']:,} vectors of {folder.width:,} numbers, {found['rejected']} rejected: {Path(options.out) / 'features.npy'}")  # fmt: skip
    return 3 if found["rejected"] else 0


def _data(options: Options) -> DataSet:
    from dataclasses import replace

    from camlucida.errors import UsageError
    from camlucida.images import datasets, sources
    from camlucida.images.datasets import DataSet, Example

    if options.unlabelled:
        if options.region != "picture":
            raise UsageError(f"--region {options.region}", got="--unlabelled pictures", allowed="annotated objects")  # fmt: skip
        listing = sources.expand(options.data)
        data = DataSet(tuple(Example(source, -1) for source in listing.sources), ())
        if not listing.sources:
            raise UsageError(f"no pictures in {', '.join(options.data)}", got=f"{listing.others} other files")
    else:
        data = datasets.load(options.data, options.corners, options.subset)
    if options.limit is not None:
        if options.limit < 1:
            raise UsageError("--limit", got=options.limit, allowed="≥ 1")
        data = replace(data, examples=datasets.evenly(data.examples, options.limit))
    return data


def _objects(example: Any) -> list[tuple[Any, Any]]:
    """The annotated boxes of a picture, each with the picture as an example of that object alone; a picture without one
    keeps its row, which is rejected and listed."""
    from dataclasses import replace

    if not example.objects:
        return [(None, example)]
    return [(t.box, replace(example, label=t.label, labels=(t.label,), objects=(t,), boxes=())) for t in example.objects]  # fmt: skip
