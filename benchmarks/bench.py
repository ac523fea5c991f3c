"""Speeds as ratios, in one process, rounds interleaved: `make bench`, or `python benchmarks/bench.py --json FILE`.

`--only cam,peers` picks studies. Peers are measured where they are installed (`pip install 'camlucida[peers]'`), each at its
own best settings. Every figure is the median over the rounds, with the range of the middle half.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import importlib
import json
import os
import platform
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from scipy import ndimage

import camlucida as cl
from camlucida import pipeline, report
from camlucida.boxes.component_tree import sweep
from camlucida.images import sources
from camlucida.images.read import read_picture
from camlucida.values import Size

Tasks = dict[str, Callable[[], object]]
Figures = dict[str, dict[str, float | str]]


def interleaved(tasks: Tasks, rounds: int) -> dict[str, list[float]]:
    """Seconds of each task in each round, after one round to warm up; all tasks run in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def summary(values: Sequence[float], unit: str) -> dict[str, float | str]:
    """Median, with the range of the middle half."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return {
        "median": statistics.median(ordered),
        "low": ordered[quarter],
        "high": ordered[-1 - quarter],
        "unit": unit,
    }


def ratios(seconds: dict[str, list[float]], base: str) -> Figures:
    """Task / base, round by round."""
    return {
        name: summary([a / b for a, b in zip(taken, seconds[base], strict=True)], "×")
        | {"milliseconds": 1000 * statistics.median(taken)}
        for name, taken in seconds.items()
    }


def cam(given: argparse.Namespace) -> Figures:
    """CAM for five classes, in float32 and with the fast settings (bfloat16, channels last), and Grad-CAM for one, ResNet-50, against
    one bare forward pass."""
    tasks = _our_maps(*_resnet(given), given)
    return ratios(interleaved(tasks, given.rounds), "bare forward pass")


def peers(given: argparse.Namespace) -> Figures:
    """The same with the peers' maps, same weights, same process, against one bare forward pass."""
    module, pixels = _resnet(given)
    tasks = _our_maps(module, pixels, given)
    with suppress(ImportError):
        from torchcam.methods import CAM

        def torchcam_cam(wanted: int) -> None:
            with CAM(module, "layer4", "fc") as extract, torch.inference_mode():
                module(pixels)
                for c in range(1, wanted + 1):
                    extract([c] * given.batch, normalized=False)

        tasks["torchcam: CAM, one class"] = lambda: torchcam_cam(1)
        tasks["torchcam: CAM, five classes"] = lambda: torchcam_cam(5)
    tasks |= _peers_tasks(module, pixels, "Grad-CAM")
    return ratios(interleaved(tasks, given.rounds), "bare forward pass")


def family(given: argparse.Namespace) -> Figures:
    """Grad-CAM's family for one class at the last layer of ResNet-50, ours and the peers', against one bare forward pass."""
    module, pixels = _resnet(given)
    net = cl.wrap(module)
    tasks = _our_maps(module, pixels, given, only=("bare forward pass",))
    for name, (method, *_) in FAMILY.items():
        tasks[f"{name}, one class"] = lambda method=method: method(net, pixels, cl.ClassTarget(1))  # type: ignore[misc]
        tasks |= _peers_tasks(module, pixels, name)
    return ratios(interleaved(tasks, given.rounds), "bare forward pass")


FAMILY: dict[str, tuple[Any, str, str, str]] = {
    "Grad-CAM": (cl.GradCAM(), "GradCAM", "GradCAM", "LayerGradCam"),
    "Grad-CAM++": (cl.GradCAMPlusPlus(), "GradCAMpp", "GradCAMPlusPlus", ""),
    "XGrad-CAM": (cl.XGradCAM(), "XGradCAM", "XGradCAM", ""),
    "HiResCAM": (cl.HiResCAM(), "", "HiResCAM", "LayerGradientXActivation"),
    "LayerCAM": (cl.LayerCAM(), "LayerCAM", "LayerCAM", ""),
}
"""Ours, and its name in torchcam, grad-cam and captum; "" where it has none."""


def where(given: argparse.Namespace) -> Figures:
    """Where CAM and Grad-CAM spend what one bare forward pass does not: own time of the functions that it does not call, as a
    share of it, by Python's profiler, which makes small functions dearer; the rest is the forward pass and its noise."""
    module, pixels = _resnet(given)
    tasks = _our_maps(module, pixels, given)
    bare = "bare forward pass"
    figures: Figures = {}
    for name in ("CAM, five classes", "Grad-CAM, one class"):
        shares: dict[str, list[float]] = {}
        tasks[name]()
        for _ in range(given.rounds):
            base, own = _own_seconds(tasks[bare]), _own_seconds(tasks[name])
            whole = sum(base.values())
            for function, seconds in own.items():
                if function not in base:
                    shares.setdefault(function, []).append(seconds / whole)
        largest = sorted(shares, key=lambda f: -statistics.median(shares[f]))
        sums = [
            sum(column)
            for column in zip(*(v for v in shares.values() if len(v) == given.rounds), strict=True)
        ]
        figures[f"{name}: all of them"] = summary(sums, "×")
        for function in largest[:6]:
            figures[f"{name}: {function}"] = summary(shares[function], "×")
    return figures


def _own_seconds(task: Callable[[], object]) -> dict[str, float]:
    """By function, its callees left out."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(task)
    found: dict[str, float] = {}
    for (file, _, function), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        place = Path(file).name.removesuffix(".py")
        words = function.strip("<>") if file == "~" else f"{place}.{function}"
        found[words] = found.get(words, 0.0) + own
    return found


def _peers_tasks(module: Any, pixels: torch.Tensor, name: str) -> Tasks:
    """That method of each peer that is installed and has it, for class 1 at the end of `layer4`."""
    _, torchcam_name, grad_cam_name, captum_name = FAMILY[name]
    classes, tasks = [1] * len(pixels), {}
    if torchcam_name and (methods := _installed("torchcam.methods")):

        def torchcam() -> None:
            with getattr(methods, torchcam_name)(module, "layer4") as extract:
                extract(classes, module(pixels), normalized=False)

        tasks[f"torchcam: {name}, one class"] = torchcam
    if grad_cam_name and (peer := _installed("pytorch_grad_cam")):
        targets = [_installed("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget(1)] * len(pixels)

        def grad_cam() -> None:
            with getattr(peer, grad_cam_name)(model=module, target_layers=[module.layer4]) as extract:
                extract(pixels, targets)

        tasks[f"grad-cam: {name}, one class"] = grad_cam
    if captum_name and (attr := _installed("captum.attr")):
        options = {"relu_attributions": True} if captum_name == "LayerGradCam" else {}

        def captum() -> None:
            getattr(attr, captum_name)(module, module.layer4).attribute(pixels, classes, **options)

        tasks[f"captum: {name}, one class"] = captum
    return tasks


def _installed(name: str) -> Any:
    """The module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def score_cam(given: argparse.Namespace) -> Figures:
    """Score-CAM of one picture, ResNet-18, float32 and bfloat16, against torchcam at its best chunk size, by the clock and in
    processor time; the maps are equal."""
    try:
        from torchcam.methods import ScoreCAM as PeerScoreCAM
    except ImportError:
        print("  torchcam is not installed")
        return {}
    torch.manual_seed(0)
    module = torchvision.models.resnet18(weights=None).eval()
    pixels = torch.randn(1, 3, given.side, given.side)
    net, half = cl.wrap(module), cl.Network(module, precision="bf16-mixed")
    method = cl.ScoreCAM(given.layer, span="cells")  # its masks

    def peer(size: int) -> torch.Tensor:
        with PeerScoreCAM(module, given.layer, batch_size=size) as extract, torch.inference_mode():
            module(pixels)
            return extract([1], normalized=False)[0]

    work: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            began = time.process_time()
            call()
            work.setdefault(name, []).append(time.process_time() - began)

        return run

    theirs, ours = peer(32), method(net, pixels, cl.ClassTarget(1)).values[:, 0]
    apart = float((theirs / theirs.max() - ours / ours.max()).abs().max())
    if not apart <= 1e-4:
        raise SystemExit(f"score_cam: the maps differ by {apart:.1e} of the largest value")
    calls: Tasks = {f"torchcam, chunks of {size}": partial(peer, size) for size in given.chunks}
    calls["camlucida"] = lambda: method(net, pixels, cl.ClassTarget(1))
    if not given.no_half:
        calls["camlucida, bfloat16"] = lambda: method(half, pixels, cl.ClassTarget(1))
    seconds = interleaved({name: timed(name, call) for name, call in calls.items()}, given.rounds)
    work = {name: taken[1:] for name, taken in work.items()}  # without the round to warm up
    figures: Figures = {"largest difference": summary([apart], "of the map")}
    for words, taken in (("", seconds), (": processor time", work)):
        best = min((n for n in calls if n.startswith("torchcam")), key=lambda n: statistics.median(taken[n]))
        figures |= {f"{name}{words}": one for name, one in ratios(taken, best).items()}
    return figures


def _resnet(given: argparse.Namespace) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    module = torchvision.models.resnet50(weights=None).eval()
    return module, torch.randn(given.batch, 3, given.side, given.side)


def _our_maps(
    module: Any, pixels: torch.Tensor, given: argparse.Namespace, only: Sequence[str] = ()
) -> Tasks:
    """CAM also with the fast settings: bfloat16 where it pays, channels last."""
    net, five = cl.wrap(module), cl.ClassTarget([[1, 2, 3, 4, 5]] * given.batch)
    quick = copy.deepcopy(module).to(memory_format=torch.channels_last)
    fast, laid = (
        cl.Network(quick, precision="bf16-mixed"),
        pixels.contiguous(memory_format=torch.channels_last),
    )

    def bare() -> None:
        with torch.inference_mode():
            module(pixels)

    def bare_fast() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            quick(laid)

    tasks: Tasks = {
        "bare forward pass": bare,
        "CAM, five classes": lambda: cl.CAM()(net, pixels, five),
        "Grad-CAM, one class": lambda: cl.GradCAM()(net, pixels, cl.ClassTarget(1)),
    }
    if not given.no_half:
        tasks["bare forward pass, fast settings"] = bare_fast
        tasks["CAM, five classes, fast settings"] = lambda: cl.CAM()(fast, laid, five)
    return {name: tasks[name] for name in only or tasks}


def boxes(given: argparse.Namespace) -> Figures:
    """The largest component's box at 1,000 thresholds of a 224 × 224 map, one core, against a loop."""
    torch.manual_seed(0)
    coarse = torch.randn(1, 1, 14, 14)
    heat = torch.nn.functional.interpolate(coarse, (224, 224), mode="bilinear")[0, 0].numpy()
    thresholds, size = np.arange(1000) / 1000, Size(224, 224)

    def loop() -> None:
        for threshold in thresholds:
            labels, count = ndimage.label(heat > threshold * heat.max(), np.ones((3, 3)))
            if count:
                sizes = np.bincount(labels.ravel())
                ndimage.find_objects((labels == sizes[1:].argmax() + 1).astype(np.int8))

    tasks: Tasks = {"loop over thresholds": loop, "one tree": lambda: sweep(heat, size, thresholds)}
    return ratios(interleaved(tasks, max(1, given.rounds // 3)), "loop over thresholds")


def folder(given: argparse.Namespace) -> Figures:
    """Photographs → result folder with overlays and page, start-up left out; ResNet-50 (random weights) also as a share of the
    rate of bare forward passes over the same batches; and the processor time of each stage, measured by itself."""
    if not given.photos:
        print("  no photographs: give --photos, or set CAMLUCIDA_DATA")
        return {}
    listed = sources.expand(given.photos).sources[: given.pictures]
    figures: Figures = {}
    for name, load in (
        ("embedded network", lambda: cl.load("embedded")),
        ("ResNet-50", lambda: cl.load("torchvision/resnet50", weights=None)),
    ):
        net = load()
        shapes: list[tuple[int, ...]] = []
        hook = net.module.register_forward_pre_hook(
            lambda _, args, kept=shapes: kept.append(tuple(args[0].shape))
        )
        _localize(net, listed)
        hook.remove()
        inputs = [
            torch.randn(shape) for shape in shapes[1:]
        ]  # the first pass looks at how the network is made

        def bare(net: cl.Network = net, inputs: list[torch.Tensor] = inputs) -> None:
            with torch.inference_mode():
                for pixels in inputs:
                    net.module(pixels)

        worked: list[float] = []

        def run(net: cl.Network = net, worked: list[float] = worked) -> None:
            began = time.process_time()
            _localize(net, listed)
            worked.append(time.process_time() - began)

        seconds = interleaved({"localize": run, "bare": bare}, max(1, given.rounds // 3))
        shares = [b / a for a, b in zip(seconds["localize"], seconds["bare"], strict=True)]
        figures[f"{name}: localize"] = summary([len(listed) / s for s in seconds["localize"]], "pictures/s")
        figures[f"{name}: bare"] = summary([len(listed) / s for s in seconds["bare"]], "pictures/s")
        figures[f"{name}: share of bare"] = summary(shares, "×")
        figures[f"{name}: processor time"] = summary(
            [1000 * s / len(listed) for s in worked[1:]], "ms/picture"
        )
        every = [_stages(net, listed) for _ in range(max(1, given.rounds // 3))]
        for stage in every[0]:
            figures[f"{name}: {stage}"] = summary([one[stage] for one in every], "ms/picture")
    return figures


def _stages(net: cl.Network, listed: Sequence[sources.Source]) -> dict[str, float]:
    """Processor time of each stage in milliseconds a picture, one stage after the other; of `maps`, what the forward
    passes take is told apart."""
    plan, spent = pipeline.plan(net), dict.fromkeys(("forward passes",), 0.0)
    names = dict(zip((s.name for s in listed), sources.unique_names(listed), strict=True))
    began = [0.0]
    hooks = [
        net.module.register_forward_pre_hook(lambda *_: began.__setitem__(0, time.process_time())),
        net.module.register_forward_hook(
            lambda *_: spent.__setitem__(
                "forward passes", spent["forward passes"] + time.process_time() - began[0]
            )
        ),
    ]

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        before = time.process_time()
        made = work()
        spent[stage] = time.process_time() - before
        return made

    read = timed("read", lambda: [pipeline._read(plan, source) for source in listed])
    read = [one for one in read if not isinstance(one, pipeline.Rejected)]
    groups: dict[Any, list[Any]] = {}
    for one in read:
        groups.setdefault(tuple(p.shape for p in one.pixels), []).append(one)
    read = [one for group in groups.values() for one in group]
    chunks = [group[i : i + 32] for group in groups.values() for i in range(0, len(group), 32)]
    mapped = timed("maps", lambda: [one for chunk in chunks for one in pipeline._map(plan, chunk, None)])
    side = pipeline.SWEEP_SIDE
    boxed = timed(
        "boxes",
        lambda: [pipeline._boxed(plan, one, seen, side) for one, seen in zip(read, mapped, strict=True)],
    )
    found = [
        pipeline.Seen(
            one.source, one.picture or read_picture(one.source.read()), box.found, box.grid,
            pipeline.THRESHOLDS, box.sweep, (), box.probabilities,
        )
        for one, box in zip(read, boxed, strict=True)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        results = report.ResultFolder.open(Path(place) / "out", {})
        timed("overlays, page entries, rows", lambda: results.write_part(0, found, [], names))
        timed("tables and page", lambda: results.finish(net.card.labels))
    for hook in hooks:
        hook.remove()
    spent["maps, without the forward passes"] = spent.pop("maps") - spent["forward passes"]
    return {stage: 1000 * seconds / len(listed) for stage, seconds in spent.items()}


def _localize(net: cl.Network, listed: Sequence[sources.Source]) -> None:
    """What `camlucida localize` does once the network is there."""
    plan = pipeline.plan(net)
    names = dict(zip((s.name for s in listed), sources.unique_names(listed), strict=True))
    with tempfile.TemporaryDirectory() as place:
        results = report.ResultFolder.open(Path(place) / "out", {})
        for index, start in enumerate(range(0, len(listed), 128)):
            with results.part(index, names) as add:
                for one in pipeline.look(plan, listed[start : start + 128]):
                    add(one)
        results.finish(net.card.labels)


def start(given: argparse.Namespace) -> Figures:
    """From the command to its first word, a process of its own: wall time and processor time."""
    figures: Figures = {}
    for name, arguments in {
        "bare Python": ["-c", "pass"],
        "import camlucida": ["-c", "import camlucida"],
        "camlucida --help": ["-m", "camlucida", "--help"],
        "camlucida localize --help": ["-m", "camlucida", "localize", "--help"],
    }.items():
        wall, work = zip(*(_child(arguments) for _ in range(given.rounds)), strict=True)
        figures[name] = summary(wall, "s")
        figures[f"{name}: processor time"] = summary(work, "s")
    return figures


def _child(arguments: Sequence[str]) -> tuple[float, float]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


STUDIES = {
    study.__name__.replace("_", "-"): study
    for study in (cam, peers, family, where, score_cam, boxes, folder, start)
}


def lines(figures: Figures) -> Iterator[str]:
    for name, one in figures.items():
        extra = f"{one['milliseconds']:10.2f} ms" if "milliseconds" in one else ""
        yield f"  {name:<38} {one['median']:9.3f} {one['unit']:<10} ({one['low']:.3f} … {one['high']:.3f}) {extra}"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--only", default="", help=f"studies, by commas: {', '.join(STUDIES)}; all of them")
    options.add_argument("--batch", type=int, default=8, help="pictures a forward pass, for the maps")
    options.add_argument("--side", type=int, default=224, help="pixels a side, for the maps")
    options.add_argument("--layer", default="layer4", help="for Score-CAM: one forward pass a channel")
    options.add_argument(
        "--chunks", type=int, nargs="+", default=[8, 16, 32, 64], help="for Score-CAM: torchcam's"
    )
    options.add_argument("--no-half", action="store_true", help="without bfloat16")
    options.add_argument("--photos", nargs="*", help="for the folder; $CAMLUCIDA_DATA/photos.zip")
    options.add_argument("--pictures", type=int, help="only the first so many of them")
    options.add_argument("--json", type=Path, help="write the figures here")
    given = options.parse_args()
    chosen = [word for word in given.only.split(",") if word] or list(STUDIES)
    if unknown := [word for word in chosen if word not in STUDIES]:
        options.error(f"--only: no study {unknown[0]!r}; there are {', '.join(STUDIES)}")
    if not given.photos:
        usual = Path(os.environ.get("CAMLUCIDA_DATA", "/nowhere")) / "photos.zip"
        given.photos = [str(usual)] if usual.is_file() else []
    machine = {
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "machine": platform.machine(),
        "python": platform.python_version(), "torch": torch.__version__, "camlucida": cl.__version__,
    }  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    results: dict[str, Any] = {
        "machine": machine,
        "rounds": given.rounds,
        "batch": given.batch,
        "side": given.side,
    }
    for word in chosen:
        print(f"\n{word}: {' '.join((STUDIES[word].__doc__ or '').split())}\n", flush=True)
        figures = STUDIES[word](given)
        results[word] = {"about": STUDIES[word].__doc__, "figures": figures}
        print("\n".join(lines(figures)), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
