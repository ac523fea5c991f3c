"""What benchmarks/conformance.py asks on every network of the contract tests: identities, and of every method that it leaves the
network as it was and gives the same map where nothing happens in place."""

from __future__ import annotations

import copy
import functools
import importlib.util
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import camlucida as cl
from camlucida import maps, taps
from camlucida.errors import UnsupportedError
from camlucida.maps import catalogue
from contract import test_every_method, test_real_networks
from fingerprints import fingerprint
from small_networks import EXACT, pixels

NEAR = 1e-4
"""Oracles, identities and twins: the largest error asked for."""
METHODS = {**maps.METHODS, **maps.RECONSTRUCTIONS}
REAL = [name for name in test_real_networks.TABLE if name.startswith("torchvision/")]
QUICK = {**test_every_method.QUICK, **test_real_networks.QUICK}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    **{
        n: (b, lambda n=n: test_every_method.picture(n, 1)) for n, b in test_every_method.NETWORKS.items()
    },
    **{
        n: (lambda n=n: test_real_networks.built(n), lambda n=n: pixels(1, 64, 64 if n.endswith("Transformer") else 96))
        for n in REAL
    },
}  # fmt: skip
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TWINS = {"functional, in place": EXACT["functional relu before the pool"]}
"""Where the operation in place is a function, which no flag turns off."""


@dataclass
class Findings:
    """What does not hold, in words."""

    words: list[str] = field(default_factory=list)

    def near(self, what: str, error: float, bar: float = NEAR) -> float:
        if not error <= bar:
            self.words.append(f"{what}: {error:.1e}, asked for {bar:.0e}")
        return error


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def quiet(method: Any, net: cl.Network, x: Tensor, target: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Ablation-CAM divides")
        warnings.filterwarnings("ignore", module="captum")
        values: Tensor = method(net, x, target).values
    return values


def share(found: Tensor | np.ndarray, wanted: Tensor | np.ndarray) -> float:
    """The largest difference, as a share of the range of what is wanted; infinite where one is no number."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return np.inf
    apart, extent = np.abs(found - wanted).max(), np.ptp(wanted)
    return float(apart / extent) if extent > 0 else 0.0 if apart == 0 else np.inf


def figure(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def cell(words: str) -> str:
    return words.replace("|", "\\|")


# --- identities --------------------------------------------------------------------------------------------


class Looked:
    """A network as the identities need it."""

    def __init__(self, name: str) -> None:
        build, picture = NETWORKS[name]
        self.name, self.module, self.x = name, build(), picture()
        self.net = cl.wrap(self.module)
        self.structure = self.net.structure(self.x)
        self.head = self.structure.head

    @property
    def kind(self) -> str:
        if self.head is None:
            return "refused"
        if self.head.pool != "avg":
            return "no identity"
        return "exact" if self.head.is_exact else "linearised"

    def all(self, method: Any) -> Tensor:
        return quiet(method, self.net, self.x, cl.ClassTarget.all())


def completeness(one: Looked) -> float | None:
    if one.kind not in ("exact", "linearised"):
        return None
    layer = one.structure.features
    with taps.borrowed(one.module):
        run = one.net.run(one.x, [layer.point])
    bias, logits = one.head.linear(layer.cells(run.tapped[layer.point]))[2], one.net(one.x)
    return float((one.all(cl.CAM()).flatten(2).mean(2) + bias - logits).abs().max() / logits.abs().max())


def _over_cells(method: Any) -> Callable[[Looked], float | None]:
    def of(one: Looked) -> float | None:
        if one.kind != "exact":
            return None
        cam = one.all(cl.CAM())
        return share(one.all(method) * cam.flatten(2).shape[2], cam)

    return of


def xgrad_sum(one: Looked) -> float:
    xgrad, hires = (one.all(m).double().flatten(2) for m in (cl.XGradCAM(relu=False), cl.HiResCAM()))
    return float((xgrad.sum(2) - hires.sum(2)).abs().max() / hires.abs().sum(2).max())


def full_grad_sum(one: Looked) -> float | None:
    parts = cl.FullGrad().parts(one.net, one.x, cl.ClassTarget.all())
    if parts.bent:
        return None
    return float(parts.residual.abs().max() / parts.scores.abs().max())


def without_relu() -> Any:
    """Every ReLU lets through what it is given: nn.ReLU calls this function too."""
    return mock.patch.object(F, "relu", lambda given, inplace=False: given)


def gradient_of(score: Callable[[], Tensor], leaf: Tensor) -> Tensor:
    return torch.autograd.grad(score().sum(), leaf)[0]


def deconvnet_is_gradient(one: Looked) -> float | None:
    """At the last layer that is a module: unit 1 at its strongest position, times its activation."""
    named = dict(one.module.named_modules())
    seen = [at for at in one.structure.layers if at.reached and at.channel_axis == 1]
    calls = Counter(at.point.name for at in seen)  # one that runs twice has no output of its own
    layers = [at.name for at in seen if at.name in named and calls[at.name] == 1]
    if not layers:
        return None
    with without_relu():
        try:
            found = cl.DeconvNet(layers[-1], 1)(cl.wrap(one.module), one.x).values
        except UnsupportedError:
            return None
        leaf, kept = one.x.clone().requires_grad_(), {}
        handle = named[layers[-1]].register_forward_hook(
            lambda m, given, output: kept.update(cells=output.clone())
        )
        try:
            one.module(leaf)
        finally:
            handle.remove()
        top = kept["cells"][:, 1].flatten(1).amax(1)
        return share(found, gradient_of(lambda: top * top.detach(), leaf))


def guided_is_gradient(one: Looked) -> float:
    with without_relu():
        found = cl.GuidedBackprop()(cl.wrap(one.module), one.x, cl.ClassTarget(1)).values
        leaf = one.x.clone().requires_grad_()
        output = one.module(leaf)
        logits = output["logits"] if isinstance(output, dict) else getattr(output, "logits", output)
        return share(found, gradient_of(lambda: logits[:, 1], leaf))


IDENTITIES: dict[str, Callable[[Looked], float | None]] = {
    "mean of CAM + bias = logit": completeness,
    "Grad-CAM = CAM / Z": _over_cells(cl.GradCAM(relu=False)),
    "HiResCAM = CAM / Z": _over_cells(cl.HiResCAM()),
    "ΣXGrad-CAM = ΣHiResCAM": xgrad_sum,
    "FullGrad's sum = logit": full_grad_sum,
    "deconvnet without ReLU = gradient": deconvnet_is_gradient,
    "guided without ReLU = gradient": guided_is_gradient,
}


def identities(networks: Sequence[str], findings: Findings) -> Iterator[str]:
    yield f"| network | {' | '.join(IDENTITIES)} |"
    yield "|---|" + "---|" * len(IDENTITIES)
    for name in networks:
        one, errors = Looked(name), []
        for words, check in IDENTITIES.items():
            try:
                error = check(one)
            except Exception as raised:  # the page says so, and the run goes on
                findings.words.append(f"{words}, {name}: {type(raised).__name__}: {raised}")
                errors.append("✗")
            else:
                errors.append("–" if error is None else figure(findings.near(f"{words}, {name}", error)))
        yield f"| {name} | {' | '.join(errors)} |"


def places(networks: Sequence[str]) -> Iterator[str]:
    """The letter of each network, and what its structure says."""
    yield "| | network | class maps | where maps come from |"
    yield "|---|---|---|---|"
    for letter, name in zip(LETTERS, networks, strict=False):
        one = Looked(name)
        layer = one.structure.features
        cells = " × ".join(str(side) for side in layer.size)
        yield f"| {letter} | {name} | {one.kind} | `{layer.name}`, {cells} |"


# --- every method on every network -------------------------------------------------------------------------


@dataclass
class Tally:
    """Of one method, over the networks."""

    marks: list[str] = field(default_factory=list)
    calls: int = 0
    twins: int = 0
    apart: float = 0.0


def lived_in(module: nn.Module) -> nn.Module:
    """With gradients and a frozen parameter, as in the middle of somebody's work."""
    parameters = list(module.parameters())
    parameters[-1].requires_grad_(False)
    for p in parameters[:2]:
        p.grad = torch.ones_like(p)
    return module


def middle(module: nn.Module, x: Tensor) -> nn.Module:
    """Of the convolutions and linear layers that run, the one in the middle."""
    ran: list[nn.Module] = []
    kinds = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [m.register_forward_hook(lambda m, given, output: ran.append(m)) for m in kinds]
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()
    return ran[len(ran) // 2]


def twin_of(one: Looked) -> nn.Module | None:
    """The network with its operations in place made ordinary ones, or the other way round; None: it has neither."""
    if one.name in TWINS:
        return TWINS[one.name]()
    twin = copy.deepcopy(one.module)
    switches: list[Any] = [m for m in twin.modules() if isinstance(getattr(m, "inplace", None), bool)]
    on = any(m.inplace for m in switches)
    for m in switches:
        m.inplace = not on
    return twin if switches else None


def fails(module: nn.Module, given: object, output: object) -> None:
    raise FloatingPointError("in the middle")


def watched(module: nn.Module, call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What the call gives or raises, and what of the module it changed."""
    before = fingerprint(module)
    try:
        outcome = call()
    except Exception as error:  # told apart by the caller
        outcome = error
    after = fingerprint(module)
    return outcome, sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def on_every_network(
    networks: Sequence[str], chosen: Sequence[str], findings: Findings
) -> tuple[dict[str, Tally], list[str]]:
    """The tally of each method, and the reasons for which some refuse."""
    tallies: dict[str, Tally] = {name: Tally() for name in chosen}
    reasons: list[str] = []
    for network in networks:
        one = Looked(network)
        twin = twin_of(one)
        twin_net = None if twin is None else cl.wrap(twin)
        lived_in(one.module)
        for name in chosen:
            if name in catalogue.NEEDS and not installed(catalogue.NEEDS[name]):
                tallies[name].marks.append("")
            elif not _one_method(name, one, twin_net, tallies[name], reasons, findings):
                one = Looked(network)  # what it changed is not the next one's fault
                lived_in(one.module)
        print(f"  {network}", file=sys.stderr, flush=True)
    return tallies, reasons


def _one_method(
    name: str, one: Looked, twin: cl.Network | None, tally: Tally, reasons: list[str], findings: Findings
) -> bool:
    """Whether the network is as it was, after a good call and after one in which it raises."""
    where = f"{name} on {one.name}"
    quick = QUICK if one.name in REAL else test_every_method.QUICK
    method = maps.any_method(quick.get(name, name))
    call = functools.partial(quiet, method, x=one.x, target=cl.ClassTarget(1))
    found, changed = watched(one.module, functools.partial(call, one.net))
    tally.calls += 1
    if isinstance(found, UnsupportedError):
        reason = re.sub(r" on \w+;", ";", str(found))
        reason = re.sub(r"a sum that misses \S+ of y = [^;]+;", "a sum that is not y;", reason)
        if reason not in reasons:
            reasons.append(reason)
        tally.marks.append(f"R{reasons.index(reason) + 1}")
    elif isinstance(found, Exception):
        findings.words.append(f"{where}: {type(found).__name__}: {found}")
        tally.marks.append("✗")
    else:
        mark = {"exact": "=", "linearised": "≈"}.get(one.kind, "✓") if name == "cam" else "✓"
        tally.marks.append(mark if found.isfinite().all() and found.any() else "0")
        handle = middle(one.module, one.x).register_forward_hook(fails)
        raised, more = watched(one.module, functools.partial(call, one.net))
        handle.remove()
        tally.calls += 1
        changed += more
        if not isinstance(raised, FloatingPointError):
            findings.words.append(f"{where}: a module that raises: {raised!r:.80}")
        if twin is not None:
            apart = findings.near(f"{where}, twin", share(call(twin), found))
            tally.twins, tally.apart = tally.twins + 1, max(tally.apart, apart)
    if changed:
        findings.words.append(f"{where}: changed: {', '.join(changed[:3])}")
    return not changed
