"""Does every method do what its paper says, everywhere? Writes docs/conformance.md: `python benchmarks/conformance.py`.

From a checkout: the oracles, peers' comparisons, networks and fingerprints are those of tests/. Peers are compared where they
are installed (`pip install 'camlucida[peers]'`). A few minutes on two cores. Exit 1 where something does not hold; the page
says what. `--networks gap,gmp --page FILE` looks at these alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import camlucida as cl
import conforming
from camlucida import maps
from camlucida.maps import catalogue
from conforming import METHODS, NEAR, NETWORKS, Findings, cell, figure, installed, quiet, share
from oracles.methods import FORMULAS
from oracles.methods import NETWORKS as SMALL
from peers.comparisons import COMPARISONS, PACKAGES, case
from small_networks import pixels

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "conformance.md"
SPECS = {name: [spec for spec in FORMULAS if spec.partition(":")[0] == name] for name in METHODS}


# --- formula and oracle ------------------------------------------------------------------------------------


def formula(name: str) -> str:
    """The first sentence of the class's docstring."""
    words = " ".join((type(maps.any_method(name)).__doc__ or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", words)[0]


def oracle_error(spec: str) -> float | None:
    """Over both small networks and two pictures with a class each; None: nothing to run it on."""
    x, classes, worst = pixels(2), [1, 4], None
    for net in SMALL.values():
        wanted = [FORMULAS[spec](net, picture, c) for picture, c in zip(x, classes, strict=True)]
        if wanted[0] is None:
            continue
        found = quiet(maps.any_method(spec), cl.wrap(net.build()), x, cl.ClassTarget(classes))
        found = found[:, 0] if spec.partition(":")[0] in maps.METHODS else found
        worst = max(worst or 0.0, *(share(one, slow) for one, slow in zip(found, wanted, strict=True)))
    return worst


def oracles(chosen: Sequence[str], findings: Findings) -> Iterator[str]:
    yield "| method | formula | oracle's error | of |"
    yield "|---|---|---|---|"
    for name in chosen:
        if name in catalogue.NEEDS and not installed(catalogue.NEEDS[name]):
            yield f"| `{name}` | {cell(formula(name))} | not run: {catalogue.NEEDS[name]} is not installed | |"
            continue
        errors = [findings.near(f"{spec} and its oracle", oracle_error(spec) or 0.0) for spec in SPECS[name]]
        specs = ", ".join(f"`{spec}`" for spec in SPECS[name])
        yield f"| `{name}` | {cell(formula(name))} | {figure(max(errors))} | {specs} |"


# --- peers -------------------------------------------------------------------------------------------------


def parity(chosen: Sequence[str], findings: Findings) -> Iterator[str]:
    yield "| method | peer | of the peer | difference | where the peer deviates from the paper | with its deviation |"
    yield "|---|---|---|---|---|---|"
    for one in sorted((c for c in COMPARISONS if c.method in chosen), key=lambda c: chosen.index(c.method)):
        if not installed(PACKAGES[one.peer]):
            yield f"| `{one.method}` | {one.peer} | {one.call} | not installed | {one.deviates or '–'} | |"
            continue
        try:
            found = [one.run(*case(network)) for network in one.on]
        except Exception as error:  # the page says so, and the run goes on
            findings.words.append(f"{one}: {type(error).__name__}: {error}")
            yield f"| `{one.method}` | {one.peer} | {one.call} | ✗ | {one.deviates or 'does not'} | |"
            continue
        plain = max(f.plain for f in found)
        imitated = max((f.imitated for f in found if f.imitated is not None), default=None)
        findings.near(str(one), plain if imitated is None else imitated, one.near)
        if imitated is not None and min(f.plain for f in found) <= one.apart:
            findings.words.append(f"{one}: deviates no more")
        version = importlib.metadata.version(one.peer)
        same = "" if imitated is None else figure(imitated)
        yield (
            f"| `{one.method}` | {one.peer} {version} | {one.call} | {figure(plain)} | {one.deviates or 'does not'} | {same} |"
        )
    alone = [name for name in chosen if all(one.method != name for one in COMPARISONS)]
    if alone:
        yield f"\nNo peer compared: {', '.join(f'`{name}`' for name in alone)}."


# --- the page ----------------------------------------------------------------------------------------------


def page(networks: Sequence[str], methods: Sequence[str], peers_too: bool = True) -> tuple[str, list[str]]:
    """The page, and what does not hold."""
    findings = Findings()
    say = lambda words: print(words, file=sys.stderr, flush=True)  # noqa: E731
    say("oracles")
    slow = list(oracles(methods, findings))
    say("peers")
    peers = list(parity(methods, findings)) if peers_too else ["Not compared this time."]
    say("identities")
    sums = list(conforming.identities(networks, findings))
    say("every method on every network")
    tallies, reasons = conforming.on_every_network(networks, methods, findings)
    letters = conforming.LETTERS[: len(networks)]
    calls, twins = sum(t.calls for t in tallies.values()), sum(t.twins for t in tallies.values())
    changed = sum(": changed: " in words for words in findings.words)
    lines = [
        "# Conformance",
        "",
        "Written by `python benchmarks/conformance.py`; run that, do not change this page. It asks of every method: is it its",
        "paper's formula, is it what other libraries give, do its identities hold, does it leave the network as it was?",
        f"torch {torch.__version__}, float32, CPU; tiny and seeded networks, pictures that are not square. An error is the largest one, as a",
        f"share of the map's range (peers: of its largest value). At most {NEAR:.0e} is asked for; peers have their own bars, in",
        "`tests/peers/comparisons.py`. The tests of the suite ask for all of this and more.",
        "",
        "## What does not hold",
        "",
        *([f"- {words}" for words in findings.words] or ["Nothing."]),
        "",
        "## Formulas and oracles",
        "",
        "The formula is the first sentence of the class's documentation. The oracle is the same written slowly, as loops in",
        "float64 (`tests/oracles/methods.py`; of the package they take RISE's drawn masks alone), on two networks (a GAP head; two linear layers on the",
        "flattened map), two pictures of 20 × 28 pixels with a class each; the error is the largest over all of these and the",
        "options named.",
        "",
        *slow,
        "",
        "## Peers",
        "",
        "The same weights, the same pixels, the peer's own rescaling done to ours too (`tests/peers/comparisons.py`). Where a peer",
        "deviates from the paper, it differs from our map, and agrees with ours made to deviate as it does: the last column.",
        "",
        *peers,
        "",
        "## Identities",
        "",
        "On every network of the contract tests that they speak of; – where they do not (another head, bent operations). Z: cells.",
        "`torchvision/…`: 64 × 96 pixels (VisionTransformer: 64 × 64), random weights. Without ReLU: every ReLU lets through what it",
        "is given. A head that pools the maximum has the same class map, and no identity.",
        "",
        *sums,
        "",
        "## Every method on every network",
        "",
        "✓ runs; `=` exact, `≈` linearised at the picture's own norm (CAM); R refused, in one line that says why; ✗ fails;",
        "0: runs, and the map is zero everywhere (all of it lay below zero: weights are random).",
        "Fingerprint: modes, hooks, flags, gradients, weights, buffers, random state and grad mode, bit by bit, before and after",
        "each call and each call in which a layer in the middle raises. Twin: the network with its operations in place made",
        f"ordinary ones, or the other way round. Fingerprints differ in {changed} of {calls} calls; {twins} maps have a twin.",
        "",
        f"| method | {' | '.join(letters)} | calls, all left as it was | twins, largest difference |",
        "|---|" + "---|" * (len(letters) + 2),
    ]
    for name, tally in tallies.items():
        spoilt = any(w.startswith(f"{name} on ") and ": changed: " in w for w in findings.words)
        kept = f"{tally.calls}, {'**no**' if spoilt else 'yes'}"
        lines.append(
            f"| `{name}` | {' | '.join(tally.marks)} | {kept} | {tally.twins}, {figure(tally.apart)} |"
        )
    lines += ["", *conforming.places(networks)]
    lines += ["", *(f"- R{i + 1}: {cell(reason)}" for i, reason in enumerate(reasons)), ""]
    return "\n".join(lines), findings.words


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--networks", default="", help="only these, by commas, or semicolons where a name has a comma"
    )
    options.add_argument(
        "--methods", default="", help="only these, by commas, or semicolons where a name has a comma"
    )
    options.add_argument("--no-peers", action="store_true", help="compare with none")
    options.add_argument("--page", type=Path, help=f"written instead of {PAGE.relative_to(ROOT)}")
    given = options.parse_args(arguments)
    chosen = []
    for asked, known in ((given.networks, NETWORKS), (given.methods, METHODS)):
        words = [word.strip() for word in asked.split(";" if ";" in asked else ",") if word.strip()]
        if unknown := [word for word in words if word not in known]:
            options.error(f"no {unknown[0]!r}; there are {', '.join(known)}")
        chosen.append(words or list(known))
    if given.page is None and (given.networks or given.methods or given.no_peers):
        options.error("a part of the page: say where with --page")
    text, findings = page(*chosen, peers_too=not given.no_peers)
    (given.page or PAGE).write_text(text, encoding="utf-8")
    print("\n".join(findings) or "everything holds")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
