"""camlucida explain: what stands in every cell, on the page, in the sheet, in the arrays; and how it refuses."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida import maps, render
from camlucida.cli import main
from camlucida.errors import InputError, TargetError, UsageError
from camlucida.images.sources import Source
from camlucida.images.views import Preprocessing
from camlucida.maps.merge import Views
from camlucida.networks import cards
from camlucida.networks.labels import find_class
from camlucida.networks.lucida import Lucida
from camlucida.report import explain, explain_page
from camlucida.values import Label, Reconstruction, Size

LABELS = (
    Label("n01", "guinea pig, Cavia cobaya"),
    Label("n02", "crane"),
    Label("n03", "Crane, <b>derrick</b>"),
)
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A small network of three classes with seeded weights, packed with its card."""
    torch.manual_seed(0)
    card = cl.Card(
        "small", "lucida", {"num_classes": 3, "width": 0.125}, Preprocessing(size=64, minimum=64), LABELS
    )
    file = tmp_path_factory.mktemp("network") / "small.safetensors"
    cards.pack(file, Lucida(num_classes=3, width=0.125).state_dict(), card)
    return str(file)


def picture(folder: Path, name: str = "a & b.png", size: tuple[int, int] = (100, 70), seed: int = 1) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def rows_of(said: str) -> list[dict]:
    return [json.loads(line) for line in said.splitlines()]


@pytest.fixture(scope="module")
def done(packed, tmp_path_factory):
    """One run with a signed, a sequential and an occlusion column, and what it said."""
    from contextlib import redirect_stdout

    folder = tmp_path_factory.mktemp("explained")
    file = picture(folder)
    said = io.StringIO()
    with redirect_stdout(said):
        code = main(
            ["explain", str(file), "--out", str(folder / "out"), "--network", packed, "--classes", "GUINEA PIG,n03,1",
             "--methods", "cam,grad-cam,occlusion:patch=24,stride=16", "--json"]
        )  # fmt: skip
    assert code == 0
    return file, folder / "out", rows_of(said.getvalue())


def test_every_cell_holds_what_the_library_gives(done, packed):
    file, out, rows = done
    net = cl.load(packed)
    batch = net.preprocess(str(file), view="whole")
    logits = net(batch)[0]
    classes = [0, 2, 1]
    expected = {
        "cam": cl.CAM(),
        "grad-cam": cl.GradCAM(),
        "occlusion:patch=24,stride=16": cl.Occlusion(patch=24, stride=16),
    }
    assert [(r["class_index"], r["method"]) for r in rows] == [(c, m) for c in classes for m in expected]
    with np.load(out / "maps.npz", allow_pickle=False) as stored:
        assert sorted(stored) == sorted(r["map"] for r in rows)
        for row in rows:
            made = expected[row["method"]](net, batch, cl.ClassTarget(row["class_index"]))
            np.testing.assert_allclose(stored[row["map"]], made.values[0, 0], rtol=1e-4, atol=1e-6)
            assert row["layer"] == made.layer
            assert (row["minimum"], row["maximum"]) == pytest.approx(
                (made.values.min().item(), made.values.max().item()), rel=1e-4, abs=1e-6
            )
            assert row["status"] == made.status[0][0]
            assert row["target"] == "logit of the given class"
            assert row["score"] == pytest.approx(logits[row["class_index"]].item(), rel=1e-4)
            assert row["logit"] == pytest.approx(logits[row["class_index"]].item(), rel=1e-4)
            assert row["probability"] == pytest.approx(logits.softmax(0)[row["class_index"]].item(), rel=1e-4)
            assert row["grid"]["kind"] == made.grid.kind
            assert (row["width"], row["height"]) == (100, 70)
    assert {r["class_name"] for r in rows} == {label.name for label in LABELS}


def test_overlays_show_the_map_in_source_pixels_by_value(done, packed):
    file, out, rows = done
    net = cl.load(packed)
    batch = net.preprocess(str(file), view="whole")
    source = Image.open(file).convert("RGB").resize((400, 280), Image.Resampling.BICUBIC)
    for row, method in zip(rows[:2], (cl.CAM(), cl.GradCAM()), strict=True):
        heat = method(net, batch, cl.ClassTarget(0)).in_source()[0][0].double().numpy()
        shown = np.asarray(Image.open(out / row["overlay"])).astype(float)
        ys, xs = np.unravel_index([heat.argmax(), heat.argmin()], heat.shape)
        if row["method"] == "cam":
            part, under = 0.7, np.asarray(source).astype(float).mean(2, keepdims=True)
            steps = 0.5 + heat / (2 * np.abs(heat).max())
            colours = render.palette("signed")[np.rint(steps * 255).astype(int)]
        else:
            part, under = 0.55, np.asarray(source).astype(float)
            colours = render.palette("heat")[np.rint(heat / (heat.max() or 1) * 255).astype(int)]
        for y, x in zip(ys, xs, strict=True):
            expected = (1 - part) * under[4 * y + 2, 4 * x + 2] + part * colours[y, x]
            assert np.abs(shown[4 * y + 2, 4 * x + 2] - expected).max() <= 12, (row["method"], y, x)


def test_the_folder(done):
    _, out, rows = done
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert names == {
        "explain.html",
        "explain.png",
        "maps.npz",
        "manifest.json",
        *(r["overlay"] for r in rows),
    }
    assert "overlays/a___b-2-crane-1-cam.png" in names
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["state"] == "done"
    assert manifest["cells"] == rows
    assert set(manifest["files"]) == names - {"manifest.json"}
    assert manifest["card"]["sha256"] == manifest["settings"]["network_sha256"] != ""
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["command"][:2] == ["camlucida explain", str(out.parent / "a & b.png")]
    width, height = Image.open(out / "explain.png").size
    assert width == 4 * 384 + 3 * 8
    assert height > 3 * 269


def test_the_page_is_one_file_escaped_and_without_script(done):
    _, out, rows = done
    text = (out / "explain.html").read_text(encoding="utf-8")
    addresses = re.findall(r"""(?:src|href|action|poster|data)\s*=\s*["']([^"']*)""", text)
    assert len(addresses) == 2 + len(rows)
    assert all(one.startswith("data:") for one in addresses)
    assert not re.search(r"url\(|@import|<script|https?://", text)
    assert "default-src 'none'" in text
    assert "<b>derrick" not in text
    assert "Crane, &lt;b&gt;derrick&lt;/b&gt;" in text
    assert "a &amp; b.png" in text
    for words in (
        "logit of the given class",
        "guinea pig",
        "occlusion:patch=24, stride=16",
        "class 2",
        "n03",
    ):
        assert words in text, words
    for row in rows:
        assert (row["scale"] is None) == (row["status"] == "flat")  # Grad-CAM may be 0 everywhere
        for value in row["scale"] or ():
            assert f"<span>{f'{value:.3g}'.replace('-', '−')}</span>" in text


def test_the_page_fits_a_narrow_screen(done):
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        for width, least in ((400, 140), (1280, 200)):
            tab = browser.new_page(viewport={"width": width, "height": 800})
            requests: list[str] = []
            tab.on("request", lambda request, requests=requests: requests.append(request.url))
            tab.goto((done[1] / "explain.html").as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            shown = tab.evaluate(
                "[...document.querySelectorAll('.cells img')].map(i => i.getBoundingClientRect().width)"
            )
            assert len(shown) == 9
            assert min(shown) >= least
            assert [r for r in requests if not r.startswith("data:")] == [(done[1] / "explain.html").as_uri()]
        browser.close()


HEADS = """from torch import nn


def fully_connected():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3)
    )
"""


def test_a_method_that_refuses_leaves_a_cell_that_says_why(tmp_path, monkeypatch, capsys):
    (tmp_path / "heads_of_explain.py").write_text(HEADS)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = picture(tmp_path)
    network = ["--network", "heads_of_explain:fully_connected", "--weights", "none"]
    assert (
        main(["explain", str(file), "--out", str(tmp_path / "out"), *network, "--json", "--classes", "2"])
        == 0
    )
    cam, grad = rows_of(capsys.readouterr().out)
    assert (cam["status"], cam["map"], cam["scale"], cam["score"]) == ("refused", None, None, None)
    assert "CAM needs a head of pooling → linear" in cam["reason"]
    assert grad["status"] != "refused"
    text = (tmp_path / "out" / "explain.html").read_text(encoding="utf-8")
    assert "CAM needs a head of pooling → linear" in text
    assert 'data-method="cam" data-status="refused"' in text
    assert (tmp_path / "out" / cam["overlay"]).is_file()
    # With nothing else to show there is no page to make.
    arguments = ["explain", str(file), "--out", str(tmp_path / "none"), *network, "--methods", "cam"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no method of these explains" in said
    assert not (tmp_path / "none").exists()


WRONG = """
--classes guinea  | near it: guinea pig (n01)
--classes crane  | 2 classes of that name; say which: crane (n02), Crane (n03)
--classes zebra  | class 'zebra'; got no such name, id or number
--classes 3  | class 3; allowed: 0 … 2
--classes top:0  | top:1 or more
--methods gradcam  | did you mean 'grad-cam'?
--methods occlusion:patch=16,strid=8  | did you mean 'stride'?
--methods occlusion:patch=500  | patch 1 … 64
--layers stagez  | layer 'stagez' does not exist; did you mean 'stages'?
--layers a,,b  | names with commas between
--scale fixed:2:1  | per-map | shared | fixed:LO:HI
--scale fixed:nan:1  | per-map | shared | fixed:LO:HI
"""


@pytest.mark.parametrize("wrong", WRONG.strip().splitlines())
def test_wrong_words_are_one_line_and_write_nothing(packed, tmp_path, capsys, wrong):
    arguments, said = wrong.split("  | ", 1)
    file, out = picture(tmp_path), str(tmp_path / "out")
    assert main(["explain", str(file), "--out", out, "--network", packed, *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_classes_by_any_word_of_theirs():
    assert explain.classes("top:2, Cavia COBAYA,n02,2", LABELS) == ("top:2", 0, 1, 2)
    assert find_class(" N03 ", LABELS) == 2
    assert find_class("17", ()) == 17
    with pytest.raises(UsageError, match="this network's classes have none; give its number"):
        find_class("cat", ())
    assert explain._chosen(("top:2", 0, 2), torch.tensor([[0.1, 0.6, 0.3]])) == [1, 2, 0]
    assert explain._chosen(("top:9",), torch.tensor([[0.1, 0.6, 0.3]])) == [1, 2, 0]


def test_columns_are_methods_at_layers():
    assert explain.methods("cam,grad-cam:relu=false,occlusion:patch=16,stride=8") == (
        cl.CAM(),
        cl.GradCAM(relu=False),
        cl.Occlusion(patch=16, stride=8),
    )
    assert explain.methods("grad-cam:layer=x,occlusion,cam", "a, b") == (
        cl.GradCAM("x"), cl.Occlusion(), cl.CAM("a"), cl.CAM("b"),
    )  # fmt: skip
    assert explain.methods("all") == tuple(maps.any_method(name) for name in explain.every())


def test_layers_are_columns_of_their_own(packed, tmp_path, capsys):
    net = cl.load(packed)
    file = picture(tmp_path)
    inner = next(one.name for one in net.layers() if one.name.startswith("stages."))
    code = main(
        ["explain", str(file), "--out", str(tmp_path / "out"), "--network", packed, "--classes", "1", "--json",
         "--layers", f"{inner},stages", "--methods", "cam,grad-cam"]
    )  # fmt: skip
    assert code == 0
    rows = rows_of(capsys.readouterr().out)
    assert [(r["method"], r["layer"], r["status"] == "refused") for r in rows] == [
        (f"cam:layer={inner}", inner, True), ("cam:layer=stages", "stages", False),
        (f"grad-cam:layer={inner}", inner, False), ("grad-cam:layer=stages", "stages", False),
    ]  # fmt: skip
    batch = net.preprocess(str(file), view="whole")
    with np.load(tmp_path / "out" / "maps.npz") as stored:
        made = cl.GradCAM(inner)(net, batch, cl.ClassTarget(1)).values[0, 0]
        np.testing.assert_allclose(stored[rows[2]["map"]], made, rtol=1e-4, atol=1e-6)


# Scales and cells made by hand: no network.


def cell(heat, method="cam", status="ok", layer="conv5") -> explain.Cell:
    heat = np.array(heat, np.float32)
    return explain.Cell(method, layer, status, "", "logit", 1.0, heat, heat)


def by_hand(*heats, method: str = "cam", name: str = "a.png") -> explain.Explained:
    rows = tuple(explain.Row(i, LABELS[i], 0.5, 1.0, (cell(h, method),)) for i, h in enumerate(heats))
    grey = np.full((2, 3, 3), 100, np.uint8)
    grey[..., 0] = 160
    return explain.Explained(Source(name, name, name), Size(2, 3), grey, rows, ())


SIGNED, POSITIVE = [[0, 4.0, 0], [0, 0, -2.0]], [[0, 0, 8.0], [2.0, 0, 0]]


def test_scales():
    one, other = by_hand(SIGNED, POSITIVE), by_hand(POSITIVE, method="grad-cam")
    cells = [row.cells[0] for row in (*one.rows, *other.rows)]

    def spans(spec):
        return [explain.Scale.of(spec).limits([one, other])(c) for c in cells]

    assert spans("per-map") == [(-2, 4), (0, 8), (0, 8)]
    assert spans("shared") == [(-2, 8), (-2, 8), (0, 8)]
    assert spans("fixed:-1:3") == [(-1, 3)] * 3
    another = by_hand([[0, 0, 0], [0, 20.0, -5.0]], name="b.png")  # shared over pictures too
    assert explain.Scale.of("shared").limits([one, another])(cells[0]) == (-5, 20)


def test_colours_by_value():
    one = by_hand(SIGNED, POSITIVE)
    signed, heat = render.palette("signed").astype(float), render.palette("heat").astype(float)

    def pixel(row, low, high, y, x):
        return explain_page.overlay(one, one.rows[row].cells[0], low, high)[y, x].astype(float)

    grey, plain = np.full(3, 120.0), np.array([160.0, 100, 100])
    for (y, x), step in (
        ((0, 1), 255),
        ((1, 2), 64),
        ((0, 0), 128),
    ):  # 4 → end, −2 → a quarter in, 0 → middle
        np.testing.assert_allclose(pixel(0, -2, 4, y, x), 0.3 * grey + 0.7 * signed[step], atol=0.51)
    for (y, x), step in (((0, 2), 255), ((1, 0), 64), ((0, 0), 0)):
        np.testing.assert_allclose(pixel(1, 0, 8, y, x), 0.45 * plain + 0.55 * heat[step], atol=0.51)
    np.testing.assert_allclose(pixel(1, 0, 4, 1, 0), 0.45 * plain + 0.55 * heat[128], atol=0.51)
    np.testing.assert_allclose(pixel(1, 0, 4, 0, 2), 0.45 * plain + 0.55 * heat[255], atol=0.51)  # clipped
    np.testing.assert_allclose(pixel(1, 1, 3, 1, 0), 0.45 * plain + 0.55 * heat[128], atol=0.51)


def test_a_map_with_nothing_to_show_says_its_status():
    one = by_hand(SIGNED)
    picture = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    one = replace(one, picture=picture)
    flat = explain_page.overlay(one, cell(np.zeros((200, 300)), status="flat"), 0.0, 0.0)
    grey = np.rint(picture.astype(float).mean(2)).astype(np.uint8)
    np.testing.assert_array_equal(flat[:40], np.repeat(grey[:40, :, None], 3, 2))
    assert (flat[100] != grey[100, :, None]).any()  # the words
    against = explain_page.overlay(one, cell(np.full((200, 300), -3.0), status="all-negative"), -3.0, 0.0)
    broken = cell(np.where(np.arange(300) == 7, np.inf, 1.0) * np.ones((200, 1)), status="non-finite")
    assert explain.Scale().limits([one])(broken) == (0, 0)
    np.testing.assert_array_equal(explain_page.overlay(one, broken, 0.0, 0.0)[:40], flat[:40])
    assert explain_page.plain("pooling → linear, café, 3 × 4 ≥ −1") == "pooling -> linear, cafe, 3 x 4 >= -1"
    blue = render.palette("signed")[0].astype(float)
    slow = 0.3 * picture.astype(float).mean(2, keepdims=True) + 0.7 * blue
    np.testing.assert_allclose(against, slow, atol=0.51)


@dataclass(frozen=True)
class OneAtATime:
    """A method that takes one class and gives a reconstruction: red where the class is even."""

    def __call__(self, network, batch, target=None):
        wanted = target.classes(network(batch))
        if wanted.shape[1] > 1:
            raise TargetError("one class at a time")
        values = torch.zeros_like(batch.pixels)
        values[:, 0] = 1.0 if int(wanted[0, 0]) % 2 == 0 else -1.0
        return Reconstruction(values, batch.views, "one", f"class {int(wanted[0, 0])}")


def test_later_methods_appear_by_themselves(packed, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(maps.METHODS, "one", f"{__name__}:OneAtATime")
    file = picture(tmp_path)
    code = main(
        ["explain", str(file), "--out", str(tmp_path / "out"), "--network", packed, "--classes", "0,1", "--methods", "one,cam", "--json"]
    )  # fmt: skip
    assert code == 0
    rows = [row for row in rows_of(capsys.readouterr().out) if row["method"] == "one"]
    assert [row["target"] for row in rows] == ["class 0", "class 1"]
    colours = [np.asarray(Image.open(tmp_path / "out" / row["overlay"]))[100, 100].tolist() for row in rows]
    assert colours == [[255, 128, 128], [0, 128, 128]]


def test_views_are_merged(packed, tmp_path):
    file = picture(tmp_path)
    net = cl.load(packed)
    source = Source(str(file), file.name, str(file))
    one = explain.explain(net, source, (1,), (cl.CAM(),), Views.parse("flip"))
    shape = net.card.preprocessing
    each = []
    for flip in (False, True):
        view = shape.view(Size(70, 100), "whole", 1.0, flip)
        pixels = shape.normalise(shape.pixels(Image.open(file), view)[None])
        each.append(cl.CAM()(net, cl.Batch(pixels, (view,)), cl.ClassTarget(1)))
    merged = torch.stack([made.in_source()[0][0] for made in each]).mean(0)
    np.testing.assert_allclose(one.rows[0].cells[0].raw, merged, rtol=1e-4, atol=1e-6)
    assert one.rows[0].logit == pytest.approx(
        torch.stack([made.scores[0, 0] for made in each]).mean().item(), rel=1e-4
    )


# Folders and pictures.


def test_several_pictures_and_a_broken_one(packed, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    picture(tmp_path / "in", "a.png")
    picture(tmp_path / "in", "b.png", (60, 90), 2)
    (tmp_path / "in" / "c.jpg").write_text("hello")
    out = tmp_path / "out"
    arguments = [
        "explain",
        str(tmp_path / "in"),
        "--out",
        str(out),
        "--network",
        packed,
        "--methods",
        "cam",
        "--scale",
        "shared",
    ]
    assert main([*arguments, "--classes", "top:1"]) == 3
    said = capsys.readouterr()
    assert "rejected: " in said.err
    assert "not a picture" in said.err
    assert said.out.strip().endswith("explain.html")
    manifest = json.loads((out / "manifest.json").read_text())
    assert [Path(r["path"]).name for r in manifest["rejected"]] == ["c.jpg"]
    assert [Path(c["path"]).name for c in manifest["cells"]] == ["a.png", "b.png"]
    assert len({tuple(c["scale"]) for c in manifest["cells"]}) == 1
    assert {p.name for p in out.glob("*.png")} == {"explain-a.png", "explain-b.png"}
    text = (out / "explain.html").read_text(encoding="utf-8")
    assert text.count("<article") == 2
    assert "1 rejected picture" in text
    (tmp_path / "in" / "a.png").unlink()
    (tmp_path / "in" / "b.png").unlink()
    assert main(["explain", str(tmp_path / "in"), "--out", str(tmp_path / "no"), "--network", packed]) == 3
    assert not (tmp_path / "no").exists()


def test_folders_of_others_and_earlier_runs(packed, tmp_path, capsys):
    file, out = picture(tmp_path), tmp_path / "out"
    quick = ["explain", str(file), "--network", packed, "--methods", "cam", "--classes"]
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "manifest.json").write_text(
        '{"tool": "camlucida", "schema_version": 1}'
    )  # of localize
    assert main([*quick, "1", "--out", str(tmp_path / "theirs"), "--overwrite"]) == 2
    assert "nothing was touched" in capsys.readouterr().err
    assert main([*quick, "0,1", "--out", str(out)]) == 0
    (out / "explain-mine.png").write_bytes(b"mine")
    (out / "overlays" / "mine.png").write_bytes(b"mine")
    before = (out / "explain.html").read_bytes()
    assert main([*quick, "1", "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*quick, "zebra", "--out", str(out), "--overwrite"]) == 2
    assert (out / "explain.html").read_bytes() == before
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"] += ["../a & b.png", "/etc/hostname", "manifest.json/../../a & b.png"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert main([*quick, "2", "--out", str(out), "--overwrite"]) == 0
    assert sorted(p.name for p in (out / "overlays").iterdir()) == sorted(
        [
            "mine.png",
            *(Path(c["overlay"]).name for c in json.loads((out / "manifest.json").read_text())["cells"]),
        ]
    )
    assert (out / "explain-mine.png").read_bytes() == b"mine"
    assert file.is_file()


def test_too_many_pictures_and_a_picture_that_is_not_there(packed, tmp_path, capsys):
    for i in range(21):
        picture(tmp_path, f"{i}.png", (8, 6))
    assert main(["explain", str(tmp_path), "--out", str(tmp_path / "out"), "--network", packed]) == 2
    assert "21 pictures" in capsys.readouterr().err
    assert (
        main(["explain", str(tmp_path / "none.jpg"), "--out", str(tmp_path / "out"), "--network", packed])
        == 2
    )
    with pytest.raises(InputError):
        explain.explain(
            cl.load(packed), Source("x", "x", str(tmp_path / "x.png")), (0,), (cl.CAM(),), Views()
        )


def test_the_cost_of_occlusion_is_said_on_a_terminal_only(packed, tmp_path, capsys, monkeypatch):
    file = picture(tmp_path)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    arguments = [
        "explain",
        str(file),
        "--network",
        packed,
        "--classes",
        "0",
        "--methods",
        "cam,occlusion:patch=24,stride=20",
    ]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    # 64 × 91 pixels: ⌊40/20⌋ + 1 = 3 by ⌊67/20⌋ + 1 = 4 places.
    assert capsys.readouterr().err.splitlines()[:3] == [
        "cam",
        "occlusion:patch=24,stride=20",
        "occlusion: ≈ 12 forward passes a picture",
    ]
    monkeypatch.undo()
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 0
    assert capsys.readouterr().err == ""


def test_memory_is_kept_to_and_changes_nothing(packed, tmp_path, capsys, monkeypatch):
    file, shown, run = picture(tmp_path), [], cl.Network.run
    monkeypatch.setattr(
        cl.Network, "run", lambda net, x, *a, **k: shown.append(len(x)) or run(net, x, *a, **k)
    )
    arguments = [
        "explain",
        str(file),
        "--network",
        packed,
        "--classes",
        "0",
        "--json",
        "--methods",
        "rise:masks=6",
    ]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert max(shown) == 6
    del shown[:]
    assert main([*arguments, "--out", str(tmp_path / "b"), "--memory", "1kB"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert max(shown) == 1
    assert plain["maximum"] > plain["minimum"]
    assert kept["maximum"] == pytest.approx(plain["maximum"], rel=1e-4)
    assert kept["minimum"] == pytest.approx(plain["minimum"], rel=1e-4)
    assert main([*arguments, "--out", str(tmp_path / "c"), "--memory", "much"]) == 2
    assert "512MB" in capsys.readouterr().err


def test_the_users_module_comes_back_as_it_was(packed, tmp_path):
    net = cl.load(packed)
    net.module.train()
    before = {name: tensor.clone() for name, tensor in net.module.state_dict().items()}
    state = torch.random.get_rng_state()
    explain.explain(
        net, Source("a", "a", str(picture(tmp_path))), ("top:1",), (cl.CAM(), cl.GradCAM()), Views()
    )
    assert net.module.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.module.parameters())
