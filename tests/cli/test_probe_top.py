"""`camlucida probe top`: rows against a sort, kills, shares, pages, and what is refused."""

import json
import re

import numpy as np
import own_networks
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.images.views import Preprocessing
from camlucida.report import probe_top
from small_networks import seeded

OWN = ["--arch", "own_networks:gap", "--weights", "mine.pth", "--size", "30"]
TOP = ["probe", "top", "pictures", *OWN, "--layers", "0,1", "--k", "3", "--part", "4", "--batch", "2"]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(seeded(own_networks.gap).state_dict(), "mine.pth")
    rng = np.random.default_rng(0)
    for i in range(13):
        file = tmp_path / "pictures" / f"class-{i % 2}" / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        shape = (40, 56, 3) if i % 3 else (56, 40, 3)
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(file)
    return tmp_path


def rows(out):
    return pyarrow.parquet.read_table(f"{out}/top.parquet").to_pylist()


def test_the_rows_are_those_of_a_sort_and_the_page_shows_them(desk, capsys):
    (desk / "pictures" / "class-0" / "broken.png").write_text("no picture")
    assert main([*TOP, "--units", "0,5", "--out", "out", "--json"]) == 3
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert "broken.png" in said.err
    assert (figures["pictures"], figures["rejected"], figures["k"]) == (14, 1, 3)
    module = seeded(own_networks.gap)
    net = cl.wrap(module, card=cl.Card(preprocessing=Preprocessing(size=30)))
    files = sorted(str(f.relative_to(desk)) for f in (desk / "pictures").rglob("[0-9]*.png"))
    maps = {file: module[:2](net.preprocess(file).pixels)[0].detach() for file in files}
    found = [row for row in rows("out") if row["layer"] == "1"]
    assert len(found) == 6 * 3
    for row in found:
        best = sorted((-float(one[row["unit"]].max()), file) for file, one in maps.items())[row["rank"] - 1]
        assert row["activation"] == pytest.approx(-best[0], rel=1e-5)
        assert row["path"] == best[1]
        assert float(maps[best[1]][row["unit"], row["row"], row["column"]]) == pytest.approx(
            -best[0], rel=1e-5
        )
        width, height = Image.open(row["path"]).size
        x, y = (2 * row["column"] * 4 / 3, 2 * row["row"] * 4 / 3)  # 3 × 3 pixels, stride 2, of 30 for 40
        assert (row["x0"], row["y0"]) == pytest.approx((x, y), abs=0.1)
        assert row["x1"] == pytest.approx(min(x + 4, width), abs=0.1)
        assert row["y1"] == pytest.approx(min(y + 4, height), abs=0.1)
    text = (desk / "out" / "report.html").read_text()
    links = set(re.findall(r'href="(pictures/[^"]+)"', text))
    assert links
    assert all((desk / "out" / link).is_file() for link in links)
    assert len(re.findall('alt="patch of 1 unit 5, rank', text)) == 3
    assert len(re.findall('alt="projection of 1 unit 5, rank', text)) == 3
    (first, second) = figures["layers"]
    assert (second["layer"], second["units"], second["shown"]) == ("1", 6, [0, 5])
    assert second["projections"] > second["patches"]  # no max pooling: every picture's is the unit's own
    assert 1 / 3 <= second["folder"] <= 1
    assert first["refused"] == ""
    assert not second["switches"]
    assert "But no maximum is pooled on the way to 1" in text


def test_a_killed_run_goes_on_and_shares_join_to_the_same_rows(desk, capsys, monkeypatch):
    assert main([*TOP, "--out", "whole"]) == 0
    save, calls = probe_top.save_state, []

    def killed(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(probe_top, "save_state", killed)
        assert main([*TOP, "--out", "stopped"]) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert not (desk / "stopped" / "top.parquet").exists()
    assert main([*TOP, "--out", "stopped"]) == 2
    assert main([*TOP, "--out", "stopped", "--resume", "--k", "2"]) == 2
    assert "k 2 (there: 3)" in capsys.readouterr().err
    assert main([*TOP, "--out", "stopped", "--resume"]) == 0
    assert rows("stopped") == rows("whole")
    for i in ("2", "1"):
        assert main([*TOP, "--out", f"share-{i}", "--shard", f"{i}/2"]) == 0
    assert main([*TOP, "--out", "both", "--join", "share-1"]) == 2
    assert "2 of 4 parts" in capsys.readouterr().err
    assert main([*TOP, "--out", "both", "--join", "share-2", "share-1"]) == 0
    assert rows("both") == rows("whole")
    for name in ("stopped", "both"):
        with np.load("whole/state.npz") as one, np.load(f"{name}/state.npz") as other:
            for key in {*one.files, *other.files} - {"about"}:
                np.testing.assert_array_equal(one[key], other[key])
    before = rows("whole")
    assert main([*TOP, "--out", "whole", "--resume", "--units", "evenly:2"]) == 0  # other units, no new pass
    assert rows("whole") == before
    assert "unit 5" in (desk / "whole" / "report.html").read_text()


def test_shards_of_a_webdataset_are_pictures(desk):
    import tarfile

    with tarfile.open("set-000.tar", "w") as tar:
        for file in sorted((desk / "pictures" / "class-0").iterdir()):
            tar.add(file, file.name)
            (desk / "label.cls").write_text("0")
            tar.add("label.cls", f"{file.stem}.cls")
    assert main(["probe", "top", "set-{000..000}.tar", *OWN, "--k", "2", "--out", "out"]) == 0
    assert {row["path"].split("/")[0] for row in rows("out")} == {"set-000.tar"}


def test_a_network_that_cannot_be_led_back_shows_patches_and_says_why(desk, capsys):
    assert main(["probe", "top", "pictures", "--arch", "own_networks:smooth", "--weights", "none", "--layers", "2", "--k", "2", "--size", "30", "--units", "1", "--out", "out", "--json"]) == 0  # fmt: skip
    (layer,) = json.loads(capsys.readouterr().out)["layers"]
    assert "gelu" in layer["refused"]
    text = (desk / "out" / "report.html").read_text()
    assert "No projections: " in text
    assert 'alt="patch of 2 unit 1' in text
    assert "projection of" not in text


def test_a_unit_that_no_picture_excites_shows_none(desk, capsys):
    state = torch.load("mine.pth", weights_only=True)
    state["0.bias"][2] = -1e4
    torch.save(state, "mine.pth")
    assert main([*TOP, "--layers", "1", "--units", "2,5", "--out", "out"]) == 0
    text = (desk / "out" / "report.html").read_text()
    assert text.count("No picture excites it.") == 1
    assert "patch of 1 unit 2" not in text
    assert "patch of 1 unit 5" in text
    assert [row["activation"] for row in rows("out") if row["unit"] == 2] == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layers", "9"], "layer '9' does not exist"),
        (["--layers", "4"], "layer '4' has no spatial extent"),
        (["--k", "14"], "13 pictures"),
        (["--k", "0"], "--k; got 0"),
        (["--units", "6"], "0 … 5"),
        (["--units", "best"], "strongest:N"),
        (["--shard", "3/2"], "1/N to N/N"),
        (["--join", "pictures"], "no state.npz"),
        (["--join", "a", "--resume"], "--join"),
    ],
)
def test_bad_input_is_one_line(desk, capsys, arguments, words):
    assert main([*TOP, "--out", "out", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert not (desk / "out" / "manifest.json").exists()  # nothing was begun


def test_an_empty_folder_and_broken_pictures_are_one_line(desk, capsys):
    (desk / "empty").mkdir()
    assert main(["probe", "top", "empty", *OWN, "--out", "out"]) == 2
    assert "no pictures in empty" in capsys.readouterr().err
    for i in range(3):
        (desk / "empty" / f"{i}.png").write_text("no picture")
    assert main(["probe", "top", "empty", *OWN, "--k", "2", "--out", "out"]) == 2
    assert "0 usable pictures; empty/0.png" in capsys.readouterr().err
