"""`camlucida evaluate --task localization` as a person types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.errors import LayerError
from camlucida.images.datasets import evenly
from camlucida.images.views import Preprocessing
from camlucida.maps.saliency import Saliency
from camlucida.networks import cards
from camlucida.networks.lucida import Lucida
from camlucida.values import Label


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    torch.manual_seed(0)
    module = Lucida(num_classes=3, width=0.125)
    tuned = cards.Tuned("cam", "fraction-of-max:threshold=0.4", "1", "tuning split, 9 pictures")
    card = cl.Card(
        "small", "lucida", {"num_classes": 3, "width": 0.125}, Preprocessing(size=48, minimum=48),
        tuple(Label(f"n{i}", name) for i, name in enumerate(("one", "two", "three"))), localization=tuned,
    )  # fmt: skip
    file = tmp_path_factory.mktemp("network") / "small.safetensors"
    cards.pack(file, module.state_dict(), card)
    return str(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Class folders of six pictures, not square, with boxes; one is broken."""
    folder = tmp_path_factory.mktemp("data") / "set"
    rng = np.random.default_rng(1)
    lines = ["path,x0,y0,x1,y1"]
    for i in range(6):
        place = folder / f"n{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        shape = (40, 60) if i % 2 else (60, 44)
        coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        coarse.resize(shape[::-1], Image.Resampling.BICUBIC).save(place / f"p{i}.png")
        lines.append(f"n{i % 3}/p{i}.png,4,5,35,33")
    (folder / "n0" / "broken.png").write_bytes(b"nothing")
    lines.append("n0/broken.png,0,0,5,5")
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def evaluate(data, *options, capsys) -> tuple[int, str, str]:
    code = main(["evaluate", str(data), "--task", "localization", *map(str, options)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_run(packed, data, tmp_path, capsys):
    out = tmp_path / "out"
    code, printed, said = evaluate(data, "--network", packed, "--top", 2, "--figures", 3, "--json", "--out", out, capsys=capsys)  # fmt: skip
    assert code == 3
    assert "broken.png" in said
    found = json.loads(printed)
    assert found == json.loads((out / "localization.json").read_text())
    assert (found["counted"], found["rejected"], found["method"]) == (6, 1, "cam")
    assert found["threshold"] == {
        "value": 0.4, "origin": "chosen on the tuning split, 9 pictures", "oracle": False
    }  # fmt: skip
    assert set(found["baselines"]) == {
        "whole picture",
        "best centred box",
        "centre Gaussian",
        "randomised head",
    }
    assert {"gt_known", "top1_localization", "error_at_1", "error_at_2", "corloc", "pointing_game"} <= set(found["figures"])  # fmt: skip
    assert set(found["oracle_figures"]["network"]) == {"max_box_accuracy", "max_box_accuracy_v2"}
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == 3 + 3 * 3 + 3 * 3 + 2 * 2  # shown; classes; saliency; two classes of two
    for title in ("Truth and prediction", "Several classes", "Beside backpropagation saliency", "One class"):
        assert title in page
    assert page.count("alt=") == page.count("<img")
    rows = parquet.read_table(out / "pictures.parquet").to_pylist()
    assert round(100 * np.mean([r["gt_known"] for r in rows]), 2) == found["figures"]["gt_known"]["percent"]


def test_the_same_summary(packed, data, capsys):
    """GT-known is what the summary calls ground-truth-known, and so is the curve."""
    _, printed, _ = evaluate(data, "--network", packed, "--json", capsys=capsys)
    found = json.loads(printed)
    main(["evaluate", data, "--network", packed, "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert found["figures"]["gt_known"]["percent"] == summary["gt_known"]["percent"]
    assert found["figures"]["top1_localization"]["percent"] == summary["top1_localization"]["percent"]
    assert found["curve"]["network"]["percent"] == summary["curve"]["gt_known"]
    assert found["baselines"]["whole picture"]["gt_known"]["percent"] == summary["baselines"]["whole_picture"]


def test_choosing_on_the_judged_set_is_asked_for_and_said(packed, data, tmp_path, capsys):
    words = "chosen on this very set: an upper bound"
    out = tmp_path / "out"
    code, printed, _ = evaluate(data, "--network", packed, "--oracle-threshold", "--figures", 0, "--out", out, capsys=capsys)  # fmt: skip
    assert code == 3
    assert words in printed
    found = json.loads((out / "localization.json").read_text())
    assert found["threshold"]["oracle"]
    assert found["threshold"]["origin"] == words
    best = found["curve"]["best_on_these_pictures"]
    assert found["threshold"]["value"] == best["threshold"]
    assert found["figures"]["gt_known"]["percent"] == best["percent"]
    for name in ("curve.csv", "curve.svg", "report.html", "localization.json"):
        assert words in (out / name).read_text()
    _, printed, _ = evaluate(data, "--network", packed, "--threshold", 0.3, capsys=capsys)
    assert "threshold 0.3, given on the command line" in printed
    assert words not in printed.split("best of the curve")[0]


def test_five_guesses_of_three_classes(packed, data, capsys):
    code, printed, _ = evaluate(data, "--network", packed, "--boxes", "tight-loose", "--json", capsys=capsys)
    assert code == 3
    found = json.loads(printed)
    assert found["threshold"]["value"] is None
    assert found["curve"]["chosen"] is None
    assert found["figures"]["error_at_5"]["percent"] <= found["figures"]["error_at_1"]["percent"]


@pytest.mark.parametrize("method", ["saliency:blur=4", "saliency"])
def test_the_rival_is_a_method_like_any_other(packed, data, capsys, method):
    boxes = ("--boxes", "graph-cut:side=24") if method == "saliency" else ()
    code, printed, _ = evaluate(data, "--network", packed, "--method", method, *boxes, "--limit", 3, "--json", capsys=capsys)  # fmt: skip
    found = json.loads(printed)
    assert found["method"].startswith("saliency")
    assert found["counted"] >= 2
    assert code in (0, 3)


def test_maps_out_and_in(packed, data, tmp_path, capsys):
    _, printed, _ = evaluate(data, "--network", packed, "--save-maps", tmp_path / "maps", "--json", capsys=capsys)  # fmt: skip
    direct = json.loads(printed)
    saved = sorted(p.relative_to(tmp_path / "maps").as_posix() for p in (tmp_path / "maps").rglob("*.npy"))
    assert saved == [f"scoremaps/n{i % 3}/p{i}.png.npy" for i in (0, 3, 1, 4, 2, 5)]
    code, printed, _ = evaluate(data, "--maps", tmp_path / "maps", "--json", "--out", tmp_path / "out", capsys=capsys)  # fmt: skip
    assert code == 3
    again = json.loads(printed)
    assert again["network"] is None
    assert "error_at_1" not in again["figures"]
    assert "randomised head" not in again["baselines"]
    for name in ("max_box_accuracy", "max_box_accuracy_v2"):
        ours, theirs = (one["oracle_figures"]["network"][name]["percent"] for one in (direct, again))
        assert ours == theirs
    assert "Maps of another tool" in (tmp_path / "out" / "report.html").read_text()


def test_a_blacklist(packed, data, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("p1.png\np4\nn0/broken.png\n")
    _, printed, _ = evaluate(data, "--network", packed, "--blacklist", tmp_path / "list.txt", "--json", capsys=capsys)  # fmt: skip
    found = json.loads(printed)
    assert (found["counted"], found["blacklisted"], found["cases"]) == (4, 2, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--oracle-threshold", "--threshold", "0.2"), "--oracle-threshold with --threshold"),
        (("--oracle-threshold", "--boxes", "tight-loose"), "allowed: fraction-of-max"),
        (("--iou", "0"), "--iou"),
        (("--top", "0"), "--top"),
        (("--maps", "nowhere"), "no folder"),
        (("--maps", "x", "--method", "cam"), "--maps with --method"),
        (("--protocol", "dense"), "--task localization with --protocol"),
        (("--blacklist", "nowhere.txt"), "blacklist nowhere.txt"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_what_does_not_go_together(packed, data, capsys, options, message):
    network = () if "--maps" in options else ("--network", packed)
    code, printed, said = evaluate(data, *network, *options, capsys=capsys)
    assert code == 2
    assert message in said
    assert printed == ""


def test_a_blacklist_that_names_nothing_is_said(packed, data, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("elsewhere.jpg\n")
    _, _, said = evaluate(data, "--network", packed, "--blacklist", tmp_path / "list.txt", "--limit", 1, capsys=capsys)  # fmt: skip
    assert "names none of the 1 pictures" in said


def test_one_map_for_two_labels_is_refused(packed, data, tmp_path, capsys):
    """The second would overwrite the first."""
    rows = ["path,label,x0,y0,x1,y1", "n0/p0.png,n0,1,1,9,9", "n0/p0.png,n1,2,2,30,30"]
    manifest = Path(shutil.copytree(data, tmp_path / "set")) / "several.csv"
    manifest.write_text("\n".join(rows) + "\n")
    code, _, said = evaluate(manifest, "--network", packed, "--save-maps", tmp_path / "maps", capsys=capsys)
    assert (code, "--save-maps; got n0/p0.png twice" in said) == (2, True)
    assert not list(tmp_path.glob("maps/**/*.npy"))
    code, printed, _ = evaluate(manifest, "--network", packed, "--out", tmp_path / "out", capsys=capsys)
    assert (code, "2 of 2 pictures that count" in printed) == (0, True)
    rows = parquet.read_table(tmp_path / "out" / "pictures.parquet").to_pylist()
    assert [r["top1_localization"] for r in rows] == [None, None]  # ranks say nothing there
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("prediction, red") > 0
    assert "class wrong" not in page


def test_masks_alone(packed, data, tmp_path, capsys):
    rows, folder = ["path,label,mask"], Path(shutil.copytree(data, tmp_path / "set"))
    for i in range(3):
        mask = np.zeros((8, 8), np.uint8)
        mask[2:6, 3:7] = 255
        Image.fromarray(mask).save(folder / f"mask{i}.png")
        rows.append(f"n{i}/p{i}.png,n{i},mask{i}.png")
    manifest = folder / "masks.csv"
    manifest.write_text("\n".join(rows) + "\n")
    code, printed, _ = evaluate(manifest, "--network", packed, "--out", tmp_path / "out", capsys=capsys)
    assert code == 0
    assert "PxAP" in printed
    assert "0 of 3 pictures that count, 3 with masks" in printed
    found = json.loads((tmp_path / "out" / "localization.json").read_text())
    assert set(found["figures"]) == {"pxap", "pointing_game", "energy"}
    assert set(found["baselines"]) == {"centre Gaussian", "randomised head"}
    assert "PxAP" in (tmp_path / "out" / "report.html").read_text()


def test_the_rivals_pictures_may_fail(packed, data, tmp_path, capsys, monkeypatch):
    """The figures are there by then, and are written."""

    def fails(self, *_: object) -> None:
        raise LayerError("no gradient reaches the pixels")

    monkeypatch.setattr(Saliency, "__call__", fails)
    code, _, _ = evaluate(data, "--network", packed, "--limit", 2, "--out", tmp_path / "out", capsys=capsys)
    assert code in (0, 3)
    assert "Without saliency, graph cut: no gradient" in (tmp_path / "out" / "report.html").read_text()


def test_saved_predictions_hold_no_maps(packed, data, tmp_path, capsys):
    file = tmp_path / "said.parquet"
    main(["evaluate", data, "--network", packed, "--predictions", str(file)])
    capsys.readouterr()
    code, _, said = evaluate(file, "--network", packed, capsys=capsys)
    assert (code, "saved predictions hold no maps" in said) == (2, True)


def test_a_limit_is_spread_over_the_whole_set():
    assert evenly(range(10), 6) == (0, 1, 3, 5, 6, 8)
    assert evenly(range(3), 9) == (0, 1, 2)
    assert evenly(range(3), 0) == ()


def test_its_options_belong_to_it(packed, data, capsys):
    assert main(["evaluate", data, "--network", packed, "--oracle-threshold"]) == 2
    assert "it belongs to --task localization" in capsys.readouterr().err


def test_the_split_that_chose_the_threshold_flatters(packed, data, capsys):
    _, printed, _ = evaluate(data, "--network", packed, "--split", "tuning", "--json", capsys=capsys)
    assert json.loads(printed)["threshold"]["origin"].endswith("if the same, an upper bound")
