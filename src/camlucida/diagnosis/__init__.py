"""Is it the model or the map? One network and a picture (or several), checked one thing at a time; each check ends in a
measured number, a verdict by a stated threshold, and words. docs/how-to/doctor.md says where the thresholds come from."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from camlucida.diagnosis import inputs, maps, outputs
from camlucida.diagnosis.inside import inside, twice
from camlucida.diagnosis.verdict import Diagnosis as Diagnosis
from camlucida.diagnosis.verdict import Finding as Finding
from camlucida.errors import UsageError
from camlucida.images import sources
from camlucida.images.read import read_picture
from camlucida.images.sources import Source
from camlucida.maps.catalogue import for_network
from camlucida.maps.occlusion import Occlusion
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget
from camlucida.values import Batch, Size


def doctor(
    net: Network, image: Any, *, truth: int | str | None = None, layer: str | nn.Module | None = None,
    method: Any = "auto", seed: int = 0,
) -> Diagnosis:  # fmt: skip
    """Checks a network on a picture: a path, PIL picture, array or tensor; or on several, whose statistics are then
    taken together, while the maps are the first one's.

    `truth`: the right class (index, id or name); `layer`: where Grad-CAM looks; `method` as in `localize`. The module
    comes back bit for bit as it was. Raises InputError for a picture that cannot be read, TargetError for a truth that
    is no class, UsageError.
    """
    names, pictures = _pictures(net, image)
    shape = net.card.preprocessing
    views = [shape.view(Size(p.height, p.width), "whole") for p in pictures]
    batch = Batch(shape.normalise(shape.pixels(pictures[0], views[0])[None]).to(net.device), (views[0],))
    insides = [inside(net, twice(shape, p, v)) for p, v in zip(pictures, views, strict=True)]
    preprocessing, better = inputs.preprocessing(net, pictures, views, insides)
    findings = [preprocessing, inputs.view(views[0]), outputs.outputs(net, batch, insides[0])]
    logits = insides[0].logits[:1]
    shown = inputs.unnormalised(shape, batch.pixels)
    expected = None if better is None else inputs.unnormalised(better, batch.pixels)
    about: dict[str, Any] = {"picture": names[0], "pictures": len(pictures), "network": net.card.name}
    if not logits.isfinite().all():
        return Diagnosis(**about, method="none", layer=None, top=(), findings=tuple(findings), shown=shown)
    top = outputs.top(net, logits)
    findings += [outputs.head(insides, seed), outputs.classes(net, logits, top, truth)]
    target = ClassTarget(int(logits.argmax()))
    looked, chosen, refused = maps.mapped(net, batch, target, method, layer)
    patch, stride = maps.coarse(min(views[0].size.height, views[0].size.width))
    drops = Occlusion(patch, stride)(net, batch, target)
    own = maps.agreement(looked, drops, seed)
    default = net.structure(batch.pixels).features
    elsewhere = default is not None and looked.layer is not None and looked.layer != default.name
    other = maps.agreement(for_network(net, batch)(net, batch, target), drops, seed) if elsewhere else None
    looked_at = None if looked.layer is None else net.find_layer(looked.layer, batch.pixels)
    findings.append(maps.layer(looked_at, default, views[0], own, other, refused))
    if looked_at is not None:
        findings.append(maps.gradient(net, batch, looked_at, target, logits))
    findings += [
        maps.status(looked),
        maps.completeness(net, batch, target, logits),
        maps.occlusion(own, drops),
    ]
    randomised, again = maps.randomised(net, batch, target, chosen, looked, insides[0], seed)
    heat = {"map": looked, "occlusion": drops, "map, head randomised": again}
    return Diagnosis(
        **about, method=looked.method, layer=looked.layer, top=top,
        findings=(*findings, randomised), shown=shown, expected=expected,
        heat={name: one.in_view()[0, 0].cpu().numpy() for name, one in heat.items() if one is not None},
    )  # fmt: skip


def _pictures(net: Network, image: Any) -> tuple[list[str], list[Image.Image]]:
    one_picture = isinstance(image, (str, Path, bytes, Image.Image)) or getattr(image, "ndim", 4) < 4
    if one_picture or not isinstance(image, Iterable):
        image = [image]
    given = chain.from_iterable(
        sources.expand([one]).sources if isinstance(one, (str, Path)) else [one] for one in image
    )
    names, pictures = [], []
    for one in given:
        names.append(one.name if isinstance(one, Source) else "<picture in memory>")
        data = one.read() if isinstance(one, Source) else one
        pictures.append(read_picture(data, net.card.preprocessing.mean_colour))
    if not pictures:
        raise UsageError("doctor", got="no picture", allowed="one or several")
    return names, pictures
