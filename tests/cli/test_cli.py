"""The commands as a person types them: what they write, what they say, how they end."""

import json
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida import pipeline
from camlucida.boxes.from_map import FractionOfMax
from camlucida.cli import VERBS, main
from camlucida.images.views import Preprocessing
from camlucida.networks import cards
from camlucida.networks.lucida import Lucida
from camlucida.values import Label


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A small network of three classes with seeded weights, packed with its card."""
    torch.manual_seed(0)
    module = Lucida(num_classes=3, width=0.125)
    card = cl.Card(
        "small", "lucida", {"num_classes": 3, "width": 0.125}, Preprocessing(size=64, minimum=64),
        tuple(Label(f"n{i}", name) for i, name in enumerate(("one", "two", "three"))), localization=cards.Tuned("cam", "fraction-of-max:threshold=0.4"),
    )  # fmt: skip
    file = tmp_path_factory.mktemp("network") / "small.safetensors"
    cards.pack(file, module.state_dict(), card)
    return str(file)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(1)
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, shape in (
        ("a.png", (70, 100, 3)),
        ("b.jpg", (120, 80, 3)),
        ("sub/a.png", (70, 100, 3)),
        ("sub/c.webp", (64, 64, 3)),
    ):
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def rows(out):
    return [
        row
        for file in sorted((out / "localizations").glob("*.parquet"))
        for row in parquet.read_table(file).to_pylist()
    ]


def localize(packed, photos, out, *more):
    return main(["localize", str(photos), "--network", packed, "--top", "2", "--out", str(out), *more])


def test_rows_are_what_the_library_gives(packed, photos, tmp_path, capsys):
    assert localize(packed, photos, tmp_path / "out", "--csv") == 0
    net = cl.load(packed)
    expected = [found for group in cl.localize(net, str(photos), top=2) for found in group]
    written = rows(tmp_path / "out")
    assert [
        (r["path"], r["rank"], r["class_name"], r["map_method"], r["box_rule"], r["threshold"])
        for r in written
    ] == [(f.path, f.rank, f.class_name, f.map_method, f.box_rule, f.threshold) for f in expected]
    assert written[0]["box_rule"] == "fraction-of-max:threshold=0.4"  # from the card
    np.testing.assert_allclose(
        [[r[c] for c in ("x0", "y0", "x1", "y1")] for r in written],
        [f.boxes[0].box.corners for f in expected],
    )
    np.testing.assert_allclose(
        [r["probability"] for r in written], [f.probability for f in expected], rtol=1e-5
    )
    shown = capsys.readouterr()
    assert shown.out.strip().endswith("report.html")
    assert "4 pictures, 0 rejected, 1 other files passed over" in shown.err
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 8
    assert (tmp_path / "out" / "localizations.csv").read_text().count("\n") == 9


def test_bad_inputs_are_listed_and_the_rest_goes_on(packed, photos, tmp_path):
    whole = (photos / "b.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.jpg").write_text("hello")
    with zipfile.ZipFile(photos / "climb.zip", "w") as archive:
        archive.write(photos / "a.png", "../../climbing.png")
        archive.write(photos / "a.png", "good.png")
    out = tmp_path / "out"
    assert (
        main(["localize", str(photos), str(photos / "climb.zip"), "--network", packed, "--out", str(out)])
        == 3
    )
    reasons = dict(line.split(",", 1) for line in (out / "rejected.csv").read_text().splitlines()[1:])
    short = {path.rsplit("/", 1)[-1]: reason for path, reason in reasons.items()}
    assert short.keys() == {"cut.jpg", "empty.png", "text.jpg", "climbing.png"}
    assert "truncated" in short["cut.jpg"]
    assert "empty file" in short["empty.png"]
    assert "not a picture" in short["text.jpg"]
    assert "climbs out" in short["climbing.png"]
    assert {r["path"].rsplit("/", 1)[-1] for r in rows(out)} == {"a.png", "b.jpg", "c.webp", "good.png"}
    assert not (tmp_path / "climbing.png").exists()


def test_interrupted_then_resumed_equals_uninterrupted(packed, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("camlucida.cli.localize.PART", 1)
    assert localize(packed, photos, tmp_path / "whole") == 0
    look, calls = pipeline.look, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return look(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "look", interrupted)
        assert localize(packed, photos, tmp_path / "parts") == 130
    assert "--resume" in capsys.readouterr().err
    assert localize(packed, photos, tmp_path / "parts") == 2  # needs --resume or --overwrite
    assert (
        localize(packed, photos, tmp_path / "parts", "--resume", "--threshold", "0.7") == 2
    )  # other settings
    assert "rule" in capsys.readouterr().err
    assert localize(packed, photos, tmp_path / "parts", "--resume") == 0
    for name in ("coco.json", "coco_results.json", "rejected.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_folder_that_is_not_ours_is_not_touched(packed, photos, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("precious")
    assert localize(packed, photos, tmp_path / "theirs", "--overwrite") == 2
    assert [p.name for p in (tmp_path / "theirs").iterdir()] == ["thesis.txt"]


def test_json_labels_and_truth(packed, photos, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("n0\teins\nn1\tzwei\nn2\tdrei\n")
    (photos / "truth.csv").write_text("path,x0,y0,x1,y1\na.png,10,20,30,40\n")
    out = tmp_path / "out"
    code = main([
        "localize", str(photos / "a.png"), "--network", packed, "--out", str(out), "--json", "--top", "1", "--labels", str(tmp_path / "names.txt"),
        "--truth", str(photos / "truth.csv"), "--boxes", "tight-loose", "--method", "grad-cam", "--views", "flip+1+1.5",
    ])  # fmt: skip
    assert code == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["box_index"] for r in found] == [0, 1]
    assert found[0]["class_name"] in ("eins", "zwei", "drei")
    assert found[0]["map_method"] == "grad-cam"
    assert found[0]["threshold"] is None
    settings = json.loads((out / "manifest.json").read_text())["settings"]
    assert settings["views"] == "flip+1+1.5"


def test_tuning_writes_the_best_threshold_and_never_the_whole_picture(packed, photos, tmp_path, capsys):
    own = tmp_path / "own.safetensors"
    own.write_bytes(Path(packed).read_bytes())
    net, name = cl.load(packed), "sub/c.webp"
    assert zlib.crc32(b"c.webp") % 5 == 0  # it is in the tuning split
    maps = cl.CAM()(net, net.preprocess(str(photos / name), view="whole"), cl.ClassTarget(0))
    inside = cl.FractionOfMax(0.7)(maps)[0][0][0].box.corners
    for corners, kept in (((0, 0, 64, 64), True), (inside, False)):
        truth = tmp_path / "truth.csv"
        truth.write_text(
            "path,label,x0,y0,x1,y1\n" + ",".join(map(str, [f"photos/{name}", "one", *corners])) + "\n"
        )
        words = ["--network", str(own), "--views", "1", "--tune", str(own), "--split", "tuning"]
        assert main(["evaluate", str(truth), *words]) == 0
        said = capsys.readouterr()
        rule = cards.read_card(own).localization.boxes
        assert (
            "stays as it is" in said.err
        ) == kept  # no box of a map beats the whole picture where that is the object
        assert ("written on the card" in said.out) == (not kept)
        assert (rule == "fraction-of-max:threshold=0.4") == kept
    assert 0.4 < float(rule.partition("threshold=")[2]) <= 0.7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["localise", "x"], "did you mean 'localize'"),
        (["localize", "{photos}", "--network", "embeded", "--out", "{out}"], "did you mean 'embedded'"),
        (
            ["localize", "{photos}", "--network", "{net}", "--method", "gradcam", "--out", "{out}"],
            "did you mean 'grad-cam'",
        ),
        (
            ["localize", "{photos}", "--network", "{net}", "--boxes", "fraction_max", "--out", "{out}"],
            "did you mean 'fraction-of-max'",
        ),
        (["localize", "{photos}", "--network", "{net}", "--boxes", "quantile:p=0.2", "--out", "{out}"], "q"),
        (["localize", "{photos}", "--network", "{net}", "--top", "0", "--out", "{out}"], "--top"),
        (["localize", "{photos}/nothing.jpg", "--network", "{net}", "--out", "{out}"], "no such picture"),
        (
            [
                "localize",
                "{photos}",
                "--network",
                "{net}",
                "--threshold",
                "0.2",
                "--boxes",
                "tight-loose",
                "--out",
                "{out}",
            ],
            "threshold",
        ),
        (["localize", "{photos}", "--network", "{net}", "--device", "tpu9", "--out", "{out}"], "device"),
        (["evaluate", "{photos}", "--network", "{net}", "--tune", "{net}"], "--split tuning"),
        (["evaluate", "--network", "{net}"], "DATA; got nothing; allowed: class folders"),
        (["train", "{photos}", "--recipe", "embeded", "--out", "{out}"], "did you mean 'embedded'"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(packed, photos, tmp_path, capsys, arguments, said):
    given = [a.format(photos=photos, out=tmp_path / "out", net=packed) for a in arguments]
    assert main(given) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unknown_options_exit_2(packed, photos, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["localize", str(photos), "--network", packed, "--outt", "x"])
    assert stop.value.code == 2


def test_evaluate_gives_the_figures_of_a_slow_loop(packed, tmp_path, capsys):
    rng = np.random.default_rng(3)
    lines = ["path,wnid,x0,y0,x1,y1"]
    for i in range(12):
        path = tmp_path / "data" / f"n{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(path)
        lines.append(f"{path.relative_to(tmp_path / 'data')},n{i % 3},{i},{2 * i},{60 + i},{63}")
    (tmp_path / "data" / "boxes.csv").write_text("\n".join(lines) + "\n")
    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "data"),
                "--network",
                packed,
                "--json",
                "--out",
                str(tmp_path / "report"),
            ]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)

    net, right, first, curve = cl.load(packed), 0, 0, np.zeros(100)
    for i in range(12):
        batch = net.preprocess(tmp_path / "data" / f"n{i % 3}" / f"{i}.png", view="whole")
        first += int(net(batch).argmax()) == i % 3
        maps = cl.CAM()(net, batch, cl.ClassTarget(i % 3))
        truth = (i, 2 * i, 61 + i, 64)  # the file's corners are inclusive

        def hit(threshold, maps=maps, truth=truth):
            x0, y0, x1, y1 = FractionOfMax(threshold)(maps)[0][0][0].box.corners
            w, h = min(x1, truth[2]) - max(x0, truth[0]), min(y1, truth[3]) - max(y0, truth[1])
            shared = max(w, 0) * max(h, 0)
            return (
                shared / ((x1 - x0) * (y1 - y0) + (truth[2] - truth[0]) * (truth[3] - truth[1]) - shared)
                >= 0.5
            )

        right += hit(0.4)
        curve += [hit(t / 100) for t in range(100)]
    assert report["top1"]["percent"] == pytest.approx(100 * first / 12, abs=0.01)
    assert report["gt_known"]["percent"] == pytest.approx(100 * right / 12, abs=0.01)
    np.testing.assert_allclose(report["curve"]["gt_known"], 100 * curve / 12, atol=0.01)
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text())["curve"] == report["curve"]


def test_networks_lists_and_shows_a_card(packed, capsys):
    assert main(["networks", packed, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"][1] == {"id": "n1", "name": "two"}


def test_networks_lists_every_name(capsys):
    from camlucida.networks import catalogue

    assert main(["networks"]) == 0
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"embedded", "alexnet-star-gap", "vgg-shallow-b", "googlenet-gmp"} < set(rows)
    assert set(catalogue.names()) <= set(rows)
    assert main(["networks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architectures"] == [*catalogue.ARCHITECTURES]


def test_networks_shows_how_a_paper_shows_pictures(capsys):
    assert main(["networks", "googlenet-gap"]) == 0
    shown = capsys.readouterr().out
    assert "shorter side 256, crop 224" in shown
    assert "RGB in 0…255, minus (123, 117, 104), divided by (1, 1, 1)" in shown


def test_top_level_help_names_every_verb():
    shown = subprocess.run(
        [sys.executable, "-m", "camlucida", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(verb in shown for verb in VERBS)


def test_help_of_localize_names_every_method(capsys):
    with pytest.raises(SystemExit):
        main(["localize", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    listed = shown.split("--method", 1)[1].split("--boxes", 1)[0].replace(",", " ").replace(";", " ").split()
    assert set(cl.maps.METHODS) <= set(listed)
