"""The command behind docs/conformance.md: it knows every method, and what does not hold is said and makes it fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import camlucida as cl
from camlucida import maps

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import conformance
import conforming

SLOW = {"saliency", "smooth-grad", "captum", "guided-backprop", "guided-grad-cam", "deconvnet"}
"""Their loops over pixels take seconds; tests/maps asks for the same."""


def test_every_method_has_a_formula_and_an_oracle():
    for name in conforming.METHODS:
        assert conformance.SPECS[name], f"{name} has no formula in tests/oracles/methods.py"
        assert conformance.formula(name).endswith(".")
    assert set(maps.METHODS) | set(maps.RECONSTRUCTIONS) == {
        spec.partition(":")[0] for spec in conformance.FORMULAS
    }
    assert conformance.formula("grad-cam") == "L = ReLU(Σ_k α_k A^k), α_k = mean over cells of ∂y/∂A^k."


@pytest.mark.parametrize("spec", [s for s in conformance.FORMULAS if s.partition(":")[0] not in SLOW])
def test_every_method_is_its_formula(spec):
    error = conformance.oracle_error(spec)
    assert error is not None
    assert 0 < error <= 1e-5


def run(tmp_path: Path, networks: str, methods: str) -> tuple[int, str]:
    file = tmp_path / "page.md"
    status = conformance.main(
        ["--networks", networks, "--methods", methods, "--page", str(file), "--no-peers"]
    )
    return status, file.read_text()


def test_the_page_says_what_runs_where_and_what_is_refused(tmp_path):
    status, text = run(
        tmp_path, "gap;fully connected;layer norm;functional, in place", "cam,grad-cam,full-grad"
    )
    assert status == 0
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert "## What does not hold\n\nNothing." in text
    assert rows["| `cam`"].startswith("| `cam` | = | R1 | ≈ | = | 7, yes | 3, ")
    assert rows["| `grad-cam`"].startswith("| `grad-cam` | ✓ | ✓ | ✓ | ✓ | 8, yes | 4, ")
    assert rows["| `full-grad`"].startswith("| `full-grad` | ✓ | ✓ | R2 | ✓ | 7, yes | 3, ")
    assert "- R1: CAM needs a head of pooling → linear" in text
    assert "- R2: FullGrad" in text
    assert "| fully connected | – | – | – | " in text
    assert "| B | fully connected | refused | `features`, 5 × 7 |" in text


def test_a_wrong_formula_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(cl.HiResCAM, "formula", lambda self, a, g: (a.relu() * g).sum(1) * 1.001)
    status, text = run(tmp_path, "gap", "hires-cam")
    assert status == 1
    assert "- hires-cam and its oracle: " in text
    assert "- HiResCAM = CAM / Z, gap: " in text


def test_a_changed_network_is_found(tmp_path, monkeypatch):
    own = cl.GradCAM.__call__

    def clumsy(self, network, batch, target=None):
        found = own(self, network, batch, target)
        network.module.features[0].weight.requires_grad_(False)
        return found

    monkeypatch.setattr(cl.GradCAM, "__call__", clumsy)
    status, text = run(tmp_path, "gap", "grad-cam")
    assert status == 1
    assert "- grad-cam on gap: changed: parameter features.0.weight" in text
    assert "| 2, **no** |" in text


def test_a_twin_that_differs_is_found(tmp_path, monkeypatch):
    def other(one):
        twin = conforming.NETWORKS[one.name][0]()
        twin.fc.weight.data *= 2
        return twin

    monkeypatch.setattr(conforming, "twin_of", other)
    status, text = run(tmp_path, "gap", "cam")
    assert status == 1
    assert "- cam on gap, twin: " in text


def test_wrong_calls(capsys):
    for arguments, words in (
        (["--networks", "gap"], "say where with --page"),
        (["--networks", "gop", "--page", "x"], "no 'gop'"),
        (["--methods", "camm", "--page", "x"], "no 'camm'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            conformance.main(arguments)
        assert words in capsys.readouterr().err
