"""camlucida probe occlusion: what its folder holds is what the library gives, and how it refuses."""

from __future__ import annotations

import csv
import json

import numpy as np
import own_networks
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.probes import study_occlusion
from camlucida.report import occlusion_panels
from camlucida.report import probe_occlusion as report
from small_networks import seeded

OWN = ["--arch", "own_networks:gap", "--weights", "mine.pth", "--size", "32", "--labels", "names.txt"]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Two class folders with boxes, one of their pictures broken; another picture without class."""
    monkeypatch.chdir(tmp_path)
    torch.save(seeded(own_networks.gap).state_dict(), "mine.pth")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog <b>\n")
    random = np.random.default_rng(0)
    for name in ("data/ant/one.png", "data/cat/two.png", "loose/other.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(name)
    (tmp_path / "data/cat/broken.png").write_bytes(b"no picture")
    rows = ["path,wnid,x0,y0,x1,y1", "ant/one.png,ant,4,6,15,19", "cat/two.png,cat,30,20,49,35"]
    (tmp_path / "data/boxes.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def network():
    net = cl.wrap(seeded(own_networks.gap))
    return cl.wrap(net.module, card=cl.Card("own", preprocessing=cl.images.views.Preprocessing(size=32)))


def rows_of(folder) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "occlusion.csv").open()))


def test_the_folder_holds_what_the_library_gives(desk, capsys):
    code = main(
        [
            "probe",
            "occlusion",
            "data",
            *OWN,
            "--patch",
            "9",
            "--stride",
            "4",
            "--others",
            "loose",
            "--out",
            "out",
            "--json",
        ]
    )
    said = capsys.readouterr()
    assert code == 3
    assert "broken.png" in said.err
    figures = json.loads(said.out)
    rows = rows_of(desk / "out")
    assert [(r["class_name"], r["class_from"]) for r in rows] == [("ant", "given"), ("cat", "given")]
    net = network()
    with np.load(desk / "out/maps.npz") as stored:
        for row, name, label, box in zip(
            rows, ("ant/one.png", "cat/two.png"), (0, 2), ((4, 6, 16, 20), (30, 20, 50, 36)), strict=True
        ):
            batch = net.preprocess(f"data/{name}", view="whole")
            wanted = study_occlusion(net, batch.pixels, label, patch=9, stride=4, engine="plain")
            key = name.replace("/", "_").removesuffix(".png")
            np.testing.assert_allclose(stored[f"{key}/activity"], wanted.activity, rtol=1e-4)
            np.testing.assert_allclose(stored[f"{key}/probability"], wanted.probability, rtol=1e-4)
            np.testing.assert_array_equal(stored[f"{key}/best"], wanted.best)
            assert float(row["largest_drop"]) == pytest.approx(wanted.drop.max(), abs=1e-5)
            assert float(row["raising_share"]) == pytest.approx((wanted.drop < 0).mean())
            # the drop with the centre hidden and with nothing of the box hidden, place by place
            scale = 32 / 40
            x0, y0, x1, y1 = (c * scale for c in box)
            hidden, clear = [], []
            for (i, j), drop in np.ndenumerate(wanted.drop):
                top, left = 4 * i, 4 * j
                if top <= (y0 + y1) / 2 < top + 9 and left <= (x0 + x1) / 2 < left + 9:
                    hidden.append(drop)
                if top >= y1 or top + 9 <= y0 or left >= x1 or left + 9 <= x0:
                    clear.append(drop)
            assert float(row["centre_hidden_drop"]) == pytest.approx(np.mean(hidden), abs=1e-5)
            assert float(row["untouched_drop"]) == pytest.approx(np.mean(clear), abs=1e-5)
    both = [float(r["centre_hidden_drop"]) for r in rows]
    assert figures["together"]["centre_hidden_drop"] == pytest.approx(np.mean(both))
    page = (desk / "out/report.html").read_text()
    assert page.count("<img") == 2 * 5 + 2 * 3  # five panels each; the map here and in two other pictures
    assert page.count('alt=""') == 0
    for words in (
        "(a) ",
        "(b) ",
        "(c) ",
        "(d) ",
        "(e) ",
        "most probable class",
        "Hiding the object",
        "the data&#39;s own",
        "1 rejected",
    ):
        assert words in page, words
    assert next(csv.DictReader((desk / "out/rejected.csv").open()))["path"].endswith("broken.png")
    assert (desk / "out/pictures/loose_other.jpg").exists() or (desk / "out/pictures/other.jpg").exists()


def test_classes_given_and_predicted(desk, capsys):
    base = ["probe", "occlusion", "loose/other.png", *OWN, "--patch", "16", "--stride", "16"]
    assert main([*base, "--class", "cat", "--out", "given"]) == 0
    (row,) = rows_of(desk / "given")
    assert (row["class_name"], row["class_from"], row["centre_hidden_drop"]) == ("cat", "given", "")
    assert main([*base, "--out", "predicted"]) == 0
    (row,) = rows_of(desk / "predicted")
    assert (row["class_index"], row["class_from"]) == (row["predicted"], "predicted")
    assert "Hiding the object" not in (desk / "predicted/report.html").read_text()
    page = (desk / "predicted/report.html").read_text()
    assert "The true classes are not known: loose/other.png" in page
    assert (
        f"{row['predicted_name'].split(',')[0]} (predicted)".replace("<", "&lt;").replace(">", "&gt;") in page
    )
    capsys.readouterr()


def test_a_square_too_large_for_one_picture_leaves_the_others(desk, capsys):
    Image.new("RGB", (60, 60), "red").save("loose/wide.png")
    Image.new("RGB", (60, 60), "red").save("loose/zero.png")
    net = network()

    def small(source, *_, see=report.Gallery.see):
        picture, batch = see(gallery, source)
        return (
            (picture, cl.Batch.of(batch.pixels[..., :20, :20])) if "wide" in source.name else (picture, batch)
        )

    gallery = report.Gallery(net, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "Gallery", lambda *_: gallery)
        patch.setattr(gallery, "see", small)
        assert (
            main(["probe", "occlusion", "loose", *OWN, "--patch", "24", "--stride", "12", "--out", "out"])
            == 3
        )
    assert "wide.png: an occlusion study; got patch 24" in capsys.readouterr().err
    assert len(rows_of(desk / "out")) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--layer", "nowhere"], "layer 'nowhere' does not exist"),
        (["--layer", "4"], "layer '4' has no spatial extent"),
        (["--patch", "33"], "patch 33, stride 8 for a view of 32 × 45 pixels; allowed: patch 1 … 32"),
        (["--class", "cow"], "class 'cow'"),
        (["--class", "7"], "class 7; allowed: 0 … 3"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_one_clear_line(desk, capsys, more, says):
    assert main(["probe", "occlusion", "loose", *OWN, "--out", "out", *more]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert says in said[0]


def studied(drop, boxes, best=0, label=0):
    """A picture of one row of three places, 10 pixels each."""
    grid = cl.Grid((10, 30), (5.0, 5.0), (10.0, 10.0), (10.0, 10.0), "places")
    probability = 0.5 - np.array([drop], np.float32)
    study = cl.probes.OcclusionStudy(
        "l",
        0,
        label,
        grid,
        np.array([[1.0, 2.0, 3.0]], np.float32),
        probability,
        np.zeros((1, 3), np.int64),
        3.0,
        0.5,
        best,
        "",
    )
    return report.Studied(None, None, None, True, tuple(boxes), study)  # type: ignore[arg-type]


def test_the_finding_says_what_the_numbers_say():
    box = [cl.Box(12, 2, 18, 8)]
    falls = report.finding([studied([0.0, 0.4, 0.1], box), studied([0.0, 0.2, 0.0], box)])
    assert "centre costs the class 0.300" in falls
    assert "beside the object 0.025: the centre costs more on average, and in 2 of 2 pictures" in falls
    assert "Where the network is right (2)" in falls
    rises = report.finding([studied([0.2, -0.1, 0.0], box, best=1)])
    assert "the centre costs no more on average, and in 0 of 1 picture." in rises
    assert "Where the network is right" not in rises
    assert "raises the score by 0.100; 100% of the places change" in rises
    assert "looks elsewhere than the decision in 0 of 1 picture:" in rises  # both at the first place
    assert "looks elsewhere than the decision in 2 of 2 pictures:" in falls
    assert studied([0.1, 0.2, 0.3], [cl.Box(0, 0, 30, 10)]).drops is None  # no place leaves the object alone


def test_classes_are_coloured_the_followed_one_first_the_rest_together():
    one = studied([0.0, 0.4, 0.1], (), label=3)
    best = np.array([[5, 5, 7]])
    made = occlusion_panels.classes(cl.probes.OcclusionStudy(**{**vars(one.study), "best": best}))
    assert [(c, round(s, 3)) for c, _, s in made] == [(3, 0.0), (5, 0.667), (7, 0.333)]
    many = np.arange(100, 112)[None]
    made = occlusion_panels.classes(cl.probes.OcclusionStudy(**{**vars(one.study), "best": many}))
    assert (len(made), made[0][0], made[-1][0]) == (8, 3, None)
    assert sum(s for *_, s in made) == pytest.approx(1)
    assert len({k for _, k, _ in made}) == 8


def test_the_gallery_ranks_by_the_map_and_leaves_the_picture_itself_out():
    gallery = report.Gallery(None, None)  # type: ignore[arg-type]
    gallery.peaks = {
        "a": torch.tensor([1.0, 9.0]),
        "b": torch.tensor([5.0, 2.0]),
        "c": torch.tensor([5.0, 3.0]),
        "shut": torch.tensor([0.0, -1.0]),
    }
    assert gallery.strongest(0, 2, "a") == ["b", "c"]
    assert gallery.strongest(0, 5, "a") == ["b", "c"]
    assert gallery.strongest(1, 5, "a") == ["c", "b"]
