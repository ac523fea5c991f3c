"""camlucida explain --methods all: the contact sheet, what everything cost, what was refused; and networks whose numbers
are no probabilities."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida import maps
from camlucida.cli import explain as cli_explain
from camlucida.cli import main
from camlucida.errors import LayerError, UnsupportedError
from camlucida.images.views import Preprocessing
from camlucida.networks import cards
from camlucida.networks.lucida import Lucida
from camlucida.report import explain
from camlucida.values import Label
from pictures import colours

LABELS = (Label("n01", "guinea pig"), Label("n02", "crane"), Label("n03", "kite"))
SHORT = {
    "rise": "rise:masks=6",
    "occlusion": "occlusion:patch=16,stride=16",
    "score-cam": "score-cam:channels=4",
    "smooth-grad": "smooth-grad:n=2",
}


@dataclass(frozen=True)
class Refuses:
    """A method for other networks."""

    def __call__(self, network, batch, target=None):
        raise UnsupportedError("this method needs a recurrent network", got="none")


@dataclass(frozen=True)
class Lost:
    """A method that finds no layer."""

    def __call__(self, network, batch, target=None):
        raise LayerError("no layer of it is here")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a picture that is not square, and a network of three classes packed with its card."""
    folder = tmp_path_factory.mktemp("all")
    Image.fromarray(colours(70, 100)).save(folder / "noise.png")
    torch.manual_seed(0)
    arguments = {"num_classes": 3, "width": 0.125}
    card = cl.Card("small", "lucida", arguments, Preprocessing(size=32, minimum=32), LABELS)
    weights = Lucida(**arguments).state_dict()
    cards.pack(folder / "small.safetensors", weights, card)
    cards.pack(folder / "scores.safetensors", weights, replace(card, name="scores", activation="none"))
    return folder


def ran(place, out: str, *options: str, network: str = "small") -> tuple[int, str]:
    said = io.StringIO()
    with redirect_stdout(said):
        code = main(
            ["explain", str(place / "noise.png"), "--out", str(place / out), "--network",
             str(place / f"{network}.safetensors"), *options]
        )  # fmt: skip
    return code, said.getvalue()


@pytest.fixture(scope="module")
def done(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain, "QUICK", SHORT)
        patch.setitem(maps.METHODS, "refuses", f"{__name__}:Refuses")
        patch.setitem(maps.METHODS, "lost", f"{__name__}:Lost")
        code, said = ran(place, "one", "--methods", "all", "--quick", "--json")
        assert code == 0
    rows = [json.loads(line) for line in said.splitlines()]
    table = io.StringIO()
    with redirect_stdout(table):
        cli_explain._show(rows)
    return place / "one", rows, table.getvalue()


def test_every_method_from_cheap_to_dear():
    names = explain.every()
    assert set(names) == {*maps.available(), *maps.RECONSTRUCTIONS}
    assert len(names) == len(set(names))
    assert [name for name in names if name in explain.DEAR] == [n for n in explain.DEAR if n in names]
    assert names[:2] == ["cam", "grad-cam"]
    assert names[-2:] == ["score-cam", "rise"]
    assert set(explain.DEAR) <= {*maps.METHODS, *maps.RECONSTRUCTIONS}
    quick = explain.every(quick=True)
    assert [name.partition(":")[0] for name in quick] == names
    assert quick[-1] == "rise:masks=400"
    assert all(maps.describe(maps.any_method(name)) == name for name in quick)


def test_every_method_of_the_predicted_class_with_its_cost(done, place):
    _, rows, _ = done
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain, "QUICK", SHORT)
        expected = explain.every(quick=True)
    assert [r["method"] for r in rows if r["method"] not in ("refuses", "lost")] == expected
    net = cl.load(str(place / "small.safetensors"))
    batch = net.preprocess(str(place / "noise.png"), view="whole")
    best = int(net(batch).argmax())
    assert {r["class_index"] for r in rows} == {best}
    for row in rows:
        assert (row["seconds"] is None) == (row["passes"] is None) == (row["status"] == "refused")
        if row["status"] != "refused":
            assert row["seconds"] > 0
            assert row["passes"] > 0.5
    runs = {r["method"]: r["runs"] for r in rows if r["runs"]}
    # 32 × 46 pixels: 2 × 2 places.
    assert runs == {
        SHORT["rise"]: "6 forward passes", SHORT["occlusion"]: "4 forward passes", SHORT["score-cam"]: "4 forward passes",
    }  # fmt: skip
    with np.load(done[0] / "maps.npz") as stored:
        row = next(r for r in rows if r["method"] == SHORT["rise"])
        made = cl.RISE(masks=6)(net, batch, cl.ClassTarget(best)).values[0, 0]
        np.testing.assert_allclose(stored[row["map"]], made, rtol=1e-4, atol=1e-6)


def test_who_refuses_has_a_tile_and_is_counted(done):
    out, rows, table = done
    refused = {r["method"]: r["reason"] for r in rows if r["status"] == "refused"}
    assert refused == {
        "refuses": "this method needs a recurrent network; got none", "lost": "no layer of it is here",
    }  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["summary"]["refused"] == 2
    assert sum(manifest["summary"].values()) == len(rows)
    assert manifest["settings"]["quick"] is True
    assert manifest["settings"]["classes"] == "top:1"
    assert "refuses refused: this method needs a recurrent network; got none" in table
    assert "2 refused" in table.splitlines()[-1]
    assert "passes" in table


def test_the_sheet_and_the_page(done):
    out, rows, _ = done
    names = {p.relative_to(out).as_posix() for p in out.rglob("*.png")}
    assert names == {"contact-sheet.png", *(r["overlay"] for r in rows)}
    sheet = Image.open(out / "contact-sheet.png")
    assert sheet.width == 1542
    assert sheet.height > 168 * -(-(1 + len(rows)) // 6)  # tiles of 240 × 168
    text = (out / "explain.html").read_text(encoding="utf-8")
    assert text.count("<figure data-method=") == len(rows)
    assert text.count('<span class="cost">') == len(rows) - 2
    assert "runs 6 forward passes" in text
    assert ">quick</dd>" in text
    assert 'class="card many"' in text


def test_several_classes_share_the_passes_of_a_row_each(place, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain, "every", lambda quick=False: ["cam", "guided-backprop", "rise:masks=6"])
        code, said = ran(place, "two", "--methods", "all", "--classes", "kite,0", "--json")
        assert code == 0
        rows = [json.loads(line) for line in said.splitlines()]
        assert [(r["class_index"], r["method"]) for r in rows] == [
            (c, m) for c in (2, 0) for m in ("cam", "guided-backprop", "rise:masks=6")
        ]
        assert rows[2]["runs"] == rows[5]["runs"] == "6 forward passes"
        assert rows[2]["passes"] == rows[5]["passes"]
        # An earlier contact sheet is one of the files that --overwrite replaces.
        assert (place / "two" / "contact-sheet.png").is_file()
        assert ran(place, "two", "--overwrite", "--methods", "cam")[0] == 0
        assert sorted(p.name for p in (place / "two").glob("*.png")) == ["explain.png"]
        # A wrong class stops everything, in one line.
        capsys.readouterr()
        assert ran(place, "wrong", "--methods", "all", "--classes", "3")[0] == 2
        error = capsys.readouterr().err
        assert "class 3; allowed: 0 … 2" in error
        assert error.count("\n") == 1
        assert not (place / "wrong").exists()


def test_quick_is_for_all(place, capsys):
    assert ran(place, "quick", "--methods", "rise", "--quick")[0] == 2
    assert "--quick; got --methods rise; allowed: --methods all" in capsys.readouterr().err


def test_the_cost_is_said_beforehand_on_a_terminal(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(explain, "every", lambda quick=False: ["cam"] * 6 + ["rise:masks=120"])
    monkeypatch.setattr(explain, "methods", lambda *a: tuple(map(maps.any_method, explain.every())))
    assert ran(place, "said", "--methods", "all")[0] == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("one forward pass takes ")
    assert "; RISE alone runs 120: about " in lines[0]
    assert lines[1:3] == ["cam (1 of 7)", "cam (2 of 7)"]
    assert "rise:masks=120 (7 of 7)" in lines
    assert "rise: ≈ 120 forward passes a picture" in lines


def test_what_a_method_warns_of_stands_with_its_map(place):
    @dataclass(frozen=True)
    class Warns:
        def __call__(self, network, batch, target=None):
            import warnings

            warnings.warn("divides by the magnitude", stacklevel=1)
            return cl.CAM()(network, batch, target)

    net = cl.load(str(place / "small.safetensors"))
    source = explain.Source(str(place / "noise.png"), "noise.png", str(place / "noise.png"))
    cell = explain.explain(net, source, (1,), (Warns(),), explain.Views()).rows[0].cells[0]
    assert (cell.status, cell.reason) == ("ok", "divides by the magnitude")


def test_a_number_that_is_no_probability_is_not_shown_as_one(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, said = ran(place, "scores", "--methods", "cam", "--classes", "top:3", "--json", network="scores")
    assert code == 0
    rows = [json.loads(line) for line in said.splitlines()]
    net = cl.load(str(place / "scores.safetensors"))
    logits = net(net.preprocess(str(place / "noise.png"), view="whole"))[0]
    assert [r["class_index"] for r in rows] == logits.argsort(descending=True).tolist()
    for row in rows:
        assert row["probability"] is None
        assert row["logit"] == pytest.approx(float(logits[row["class_index"]]), rel=1e-4)
    text = (place / "scores" / "explain.html").read_text(encoding="utf-8")
    main_part = text[text.index("<main>") :]
    assert " %<" not in main_part
    assert main_part.count('class="sure"') == 0
    for row in rows:
        shown = f"{row['logit']:.3g}"
        assert f'<span class="share">{shown}</span>' in main_part
        assert f"logit {shown.replace('-', '−')} · {row['class_id']}" in main_part
    table = ran(place, "scores", "--methods", "cam", "--classes", "top:3", "--overwrite", network="scores")[1]
    assert " %" not in table
    assert f"{LABELS[rows[0]['class_index']].name} {rows[0]['logit']:.3g}" in table
