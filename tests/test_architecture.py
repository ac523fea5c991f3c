"""Imports go only down the stream; importing the package stays light; one file reaches into modules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import camlucida
from camlucida.cli import VERBS, features, probe

ROOT = Path(camlucida.__file__).parent
STREAM = [
    ("cli",),
    ("report",),
    ("protocols",),
    ("pipeline", "diagnosis", "probes"),
    ("evaluate", "train"),
    ("maps", "features"),
    ("boxes", "targets"),
    ("networks",),
    ("taps", "images"),
    ("values",),
    ("geometry",),
    ("display",),
    ("render", "metrics"),
    ("errors", "specs"),
]
LEVEL = {stage: level for level, stages in enumerate(STREAM) for stage in stages}


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "camlucida":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("camlucida.")}
    return found & LEVEL.keys()


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_imports_go_down_the_stream(file):
    stage = file.relative_to(ROOT).parts[0].removesuffix(".py")
    if stage in ("__init__", "__main__", "recipes"):
        return
    up = {other for other in imported(file) if LEVEL[other] < LEVEL[stage]}
    assert not up, f"{stage} imports {up}, which lie further up"
    side = {other for other in imported(file) if LEVEL[other] == LEVEL[stage] and other != stage}
    allowed = {("errors", "specs"), ("specs", "errors")}
    assert all((stage, other) in allowed for other in side), f"{stage} imports its neighbour {side}"


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_is_light():
    assert (
        run(
            "import sys, camlucida; print([m for m in ('torch', 'torchvision', 'numpy', 'PIL') if m in sys.modules])"
        )
        == "[]"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([verb, "--help"] for verb in VERBS),
        *(["probe", kind, "--help"] for kind in probe.KINDS),
        *(["features", kind, "--help"] for kind in features.KINDS),
    ],
)
def test_help_does_not_import_torch(arguments):
    code = (
        "import sys, contextlib, io\nfrom camlucida.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    main({arguments})\nprint('torch' in sys.modules)"
    )
    assert run(code) == "False"
