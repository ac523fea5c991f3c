"""Every localization protocol over a data set: pictures → maps → scores, part by part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from camlucida.boxes.from_map import MAX_SIDE
from camlucida.errors import InputError
from camlucida.evaluate.judge import (
    Guesses,
    Objects,
    guesses,
    laid_over,
    objects_of,
    score_map,
    squashed,
)
from camlucida.evaluate.localization import finite, guessed, rank_of
from camlucida.evaluate.maps_folder import open_folder, read_map, write_map
from camlucida.evaluate.tally import GAUSSIAN, NETWORK, RANDOM, Case, Tally
from camlucida.images.datasets import DataSet, Example
from camlucida.images.read import MAX_PIXELS, read_picture
from camlucida.pipeline import Looked, Plan, Rejected, look
from camlucida.values import Box, Size


def judge(
    chosen: Plan,
    data: DataSet,
    tally: Tally,
    *,
    rival: Plan | None = None,
    maps_to: str | Path | None = None,
    batch: int = 64,
    workers: int = 2,
    part: int = 256,
) -> Iterator[int]:
    """Judges a plan by every localization protocol: each picture, and for each of its labels, goes into the tally with what
    `chosen` says, what a Gaussian in its middle would, and what `rival` (say, a random head) says. `maps_to`: folder that
    gets the true class's map of each as `.npy`. Yields how many cases each part held."""
    cases, protocol = one_label_each(data), tally.protocol

    def score(of: Plan, example: Example, looked: Looked) -> tuple[Objects, Any, Guesses]:
        objects = objects_of(example, looked.size)
        own, *best = looked.found
        rank = rank_of(looked.probabilities, example.label)
        made = guesses(of.rule, [f.class_index for f in best], [f.boxes for f in best], protocol.top)
        scored = None
        if (objects.boxes or objects.mask is not None) and not example.blacklisted:
            box = guessed(of.rule, own.boxes)
            scored = score_map(protocol, looked.merged[0], looked.raw[0], objects, looked.picture, box)
        return objects, scored, Guesses(rank, float(looked.probabilities[example.label]), made)

    for start in range(0, len(cases), part):
        some = cases[start : start + part]

        def first(i: int, looked: Looked, some: Sequence[Example] = some) -> tuple[Objects, dict[str, Any]]:
            objects, scored, made = score(chosen, some[i], looked)
            finite(looked.probabilities)
            if maps_to is not None:
                write_map(maps_to, some[i].source.relative, squashed(looked.raw[0]))
            if scored is None:
                return objects, {NETWORK: (None, made), GAUSSIAN: (None, made)}
            middle = tally.gaussian.score(objects, looked.picture)
            there = replace(made, made=tuple((c, Box(*middle.box)) for c, _ in made.made))
            return objects, {NETWORK: (scored, made), GAUSSIAN: (middle, there)}

        def second(i: int, looked: Looked, some: Sequence[Example] = some) -> Any:
            return score(rival, some[i], looked)[1:] if rival is not None else None

        ways: dict[str, Any] = {"batch": batch, "workers": workers, "sweeping": False, "besides": True}
        ways["classes"] = [e.label for e in some]
        pictures = [e.source for e in some]
        ours = look(chosen, pictures, **ways, judge=first)
        theirs = look(rival, pictures, **ways, judge=second) if rival is not None else None
        for example, seen in zip(some, ours, strict=True):
            other = next(theirs) if theirs is not None else None
            if isinstance(seen, Rejected) or isinstance(other, Rejected):
                bad = seen if isinstance(seen, Rejected) else other
                assert isinstance(bad, Rejected)
                tally.rejected.append((bad.source.name, bad.reason))
                continue
            tally.method = seen.found[0].map_method
            objects, found = seen.judged
            if other is not None:
                found[RANDOM] = other.judged
            tally.add(Case(seen.source.name, example.label, objects, example.blacklisted), found)
        yield len(some)


def judge_maps(
    folder: str | Path,
    data: DataSet,
    tally: Tally,
    *,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[int]:
    """`judge` for the maps of another tool: one `.npy` for each picture, of its own class. No network runs, so nothing is
    said of classes. Yields 1 for each case."""
    inside = open_folder(folder)

    def score(example: Example) -> tuple[Objects, dict[str, Any]] | str:
        try:
            picture = read_picture(example.source.read(), max_pixels=max_pixels)
            raw = read_map(inside, example.source.relative)
            objects = objects_of(example, Size(picture.height, picture.width))
        except InputError as error:
            return str(error)
        found: dict[str, Any] = {NETWORK: (None, None), GAUSSIAN: (None, None)}
        if (objects.boxes or objects.mask is not None) and not example.blacklisted:
            heat = laid_over(raw, objects.size, MAX_SIDE)
            mine = score_map(tally.protocol, heat, raw, objects, lambda: picture)
            found = {NETWORK: (mine, None), GAUSSIAN: (tally.gaussian.score(objects, lambda: picture), None)}
        return objects, found

    cases = one_label_each(data)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for start in range(0, len(cases), 64):
            some = cases[start : start + 64]
            for example, scored in zip(some, pool.map(score, some), strict=True):
                if isinstance(scored, str):
                    tally.rejected.append((example.source.name, scored))
                else:
                    objects, found = scored
                    tally.add(Case(example.source.name, example.label, objects, example.blacklisted), found)
                yield 1


def one_label_each(data: DataSet) -> list[Example]:
    """Each picture once for each of its labels, with that label's boxes. Masks do not say whose they are: where there are
    several labels, they are left out."""
    return [
        e
        if e.labels == (label,)
        else replace(e, label=label, labels=(label,), boxes=e.boxes_of(label), masks=())
        for e in data.examples
        for label in e.labels
    ]
