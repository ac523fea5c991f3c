"""One's own network by options alone: what it is told about weights, pixels and labels is what it does."""

import json
from pathlib import Path

import numpy as np
import own_networks
import pyarrow.parquet as parquet
import pytest
import torch
import torchvision
from PIL import Image

import camlucida as cl
from camlucida.cli import choices, main
from camlucida.errors import UsageError
from camlucida.images.views import Preprocessing
from camlucida.networks import heads
from camlucida.networks.labels import read_labels
from camlucida.values import Label
from small_networks import seeded

COLOUR = (200, 90, 30)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A plain picture, one of noise, weights of `own_networks:gap` with four classes, and names for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (60, 40), COLOUR).save("plain.png")
    noise = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photos/noise.png")
    torch.save(seeded(own_networks.gap).state_dict(), "mine.pth")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    return tmp_path


OWN = ["--arch", "own_networks:gap", "--weights", "mine.pth", "--size", "32"]


def localized(capsys, *arguments):
    """Rows of one run, by class name."""
    out = f"out{len(list(Path().glob('out*')))}"
    assert (
        main(["localize", "plain.png", "--out", out, "--json", "--top", "4", "--overlays", "0", *arguments])
        == 0
    )
    shown = capsys.readouterr()
    rows = [json.loads(line) for line in shown.out.splitlines()]
    return [r["logit"] for r in sorted(rows, key=lambda r: r["class_index"])], rows, shown.err


def by_hand(colour, mean, std, scale=1.0):
    """The logits of `own_networks:gap` for a picture of one colour, in float64: every cell is the same."""
    conv, _, _, _, linear = seeded(own_networks.gap)
    x = (np.array(colour) / 255 * scale - np.array(mean)) / np.array(std)
    kernel, bias = conv.weight.detach().double().numpy().sum((2, 3)), conv.bias.detach().double().numpy()
    cells = np.maximum(kernel @ x + bias, 0)
    return linear.weight.detach().double().numpy() @ cells + linear.bias.detach().double().numpy()


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OTHER = (0.1, 0.2, 0.3), (0.5, 0.25, 0.4)
CAFFE = (104.0, 117.0, 123.0), (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], by_hand(COLOUR, *IMAGENET)),
        (["--mean", "0.1", "0.2", "0.3", "--std", "0.5", "0.25", "0.4"], by_hand(COLOUR, *OTHER)),
        (["--mean", "25.5", "51", "76.5", "--std", "127.5", "63.75", "102"], by_hand(COLOUR, *OTHER)),
        (["--channels", "bgr"], by_hand(COLOUR[::-1], IMAGENET[0][::-1], IMAGENET[1][::-1])),
        (
            ["--channels", "bgr", "--range", "255", "--mean", "104", "117", "123", "--std", "1", "1", "1"],
            by_hand(COLOUR[::-1], *CAFFE, scale=255),
        ),
    ],
    ids=["imagenet", "0…1", "0…255", "bgr", "caffe"],
)
def test_mean_std_range_and_channels_reach_the_network(desk, capsys, options, expected):
    logits, _, said = localized(capsys, *OWN, *options)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    assert ("read in 0…255" in said) == ("25.5" in options)


def test_the_numbers_above_tell_the_cases_apart():
    logits = [by_hand(COLOUR, *IMAGENET), by_hand(COLOUR, *OTHER), by_hand(COLOUR[::-1], *IMAGENET)]
    assert min(np.abs(a - b).max() for i, a in enumerate(logits) for b in logits[:i]) > 0.05


def test_the_range_of_mean_and_std():
    white = choices._white
    assert white((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) == 1
    assert white((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) == 1
    assert white((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)) == 255
    assert white((127.5,), (127.5,)) == 255
    for mean, std in [
        ((104.0, 117.0, 123.0), (1.0, 1.0, 1.0)), ((0.5, 116.0, 104.0), (58.0, 57.0, 57.0)), ((0.5,), (58.0,)),
        ((300.0,), (58.0,)), ((-0.5,), (0.5,)),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match="all in 0…1, or all in 0…255"):
            white(mean, std)


def test_labels_activation_and_one_channel(desk, capsys):
    logits, rows, _ = localized(capsys, *OWN, "--labels", "names.txt", "--activation", "sigmoid")
    assert {r["class_index"]: r["class_name"] for r in rows} == dict(enumerate(["ant", "bee", "cat", "dog"]))
    for row in rows:
        assert row["probability"] == pytest.approx(1 / (1 + np.exp(-row["logit"])), rel=1e-5)
    torch.save(seeded(own_networks.grey).state_dict(), "grey.pth")
    grey = ["--channels", "grey", "--mean", "0.3", "--std", "0.4"]
    logits, _, _ = localized(capsys, "--arch", "own_networks:grey", "--weights", "grey.pth", "--size", "32", *grey)  # fmt: skip
    level = np.asarray(Image.new("RGB", (1, 1), COLOUR).convert("L"))[0, 0]
    net = seeded(own_networks.grey)
    with torch.no_grad():
        expected = net(torch.full((1, 1, 9, 9), (float(level) / 255 - 0.3) / 0.4))[0]
    np.testing.assert_allclose(logits, expected, rtol=1e-4)


def test_a_number_that_is_no_probability_is_never_shown_as_one(desk, capsys):
    """Outputs of a regression or an SVM: shown as they are, no probability in any table, COCO scored by the number."""
    words = [
        "localize",
        "plain.png",
        "photos",
        *OWN,
        "--activation",
        "none",
        "--top",
        "4",
        "--out",
        "numbers",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    table = parquet.read_table("numbers/localizations").to_pylist()
    first = [row for row in table if row["rank"] == 1 and row["box_index"] == 0]
    assert {row["probability"] for row in table} == {None}
    assert all(f"{row['logit']:.3g}" in said for row in first)
    assert "%" not in said
    assert "probability" not in said
    assert "score" in said
    page = Path("numbers/report.html").read_text()
    assert all(f'<span class="share">{row["logit"]:.3g}</span>' in page for row in first)
    assert '<span class="sure"' not in page
    ids = {
        image["file_name"]: image["id"]
        for image in json.loads(Path("numbers/coco.json").read_text())["images"]
    }
    scores = {
        (r["image_id"], r["category_id"]): r["score"]
        for r in json.loads(Path("numbers/coco_results.json").read_text())
    }
    boxed = [row for row in table if row["x0"] is not None]
    assert scores == {(ids[r["path"]], r["class_index"] + 1): r["logit"] for r in boxed}
    net = cl.wrap(
        seeded(own_networks.gap), card=cl.Card(preprocessing=Preprocessing(size=32), activation="none")
    )
    assert "%" not in repr(net.predict(net.preprocess("plain.png")))


def test_a_network_that_takes_one_square_is_found_out(desk, capsys):
    torch.save(seeded(own_networks.square).state_dict(), "square.pth")
    logits, _, _ = localized(
        capsys, "--arch", "own_networks:square", "--weights", "square.pth", "--size", "32"
    )
    shape = Preprocessing(size=32, any_size=False)
    net = cl.wrap(seeded(own_networks.square), card=cl.Card(preprocessing=shape))
    np.testing.assert_allclose(logits, net(net.preprocess("plain.png", view="whole"))[0], rtol=1e-5)


def test_a_headed_network_with_its_weights(desk, capsys):
    card = cl.Card(preprocessing=Preprocessing(size=32))
    module, card = heads.put(seeded(own_networks.square), card, "gap", cut="1")
    torch.save(module.state_dict(), "headed.pth")
    arch, head = ["--arch", "own_networks:square", "--size", "32"], ["--head", "gap", "--cut", "1"]
    logits, _, said = localized(capsys, *arch, "--weights", "headed.pth", *head)
    net = cl.wrap(module, card=card)
    np.testing.assert_allclose(logits, net(net.preprocess("plain.png", view="whole"))[0], rtol=1e-5)
    assert "random" not in said
    torch.save(seeded(own_networks.square).state_dict(), "trunk.pth")
    _, _, said = localized(capsys, *arch, "--weights", "trunk.pth", *head)
    assert "the new head is random" in said


def test_a_trained_resnet_from_checkpoint_to_boxes(desk):
    """Saved by DataParallel in a checkpoint, 7 classes: packed, and localized with nothing but the file."""
    module = seeded(torchvision.models.resnet18, num_classes=7)
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1, "state": {}}, "state_dict": state}, "ckpt.pth")
    names = tuple(f"kind {i}" for i in range(7))
    (desk / "names.json").write_text(json.dumps(names))
    mean, std = ["--mean", "0.4", "0.5", "0.6"], ["--std", "0.2", "0.3", "0.25"]
    arch = ["--arch", "torchvision/resnet18", "--weights", "ckpt.pth"]
    assert (
        main(["pack", "mine.safetensors", *arch, "--labels", "names.json", *mean, *std, "--size", "64"]) == 0
    )
    assert main(["localize", "photos", "--network", "mine.safetensors", "--top", "3", "--out", "seen"]) == 0
    shape = Preprocessing(64, 224, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), minimum=32)
    net = cl.wrap(
        module, card=cl.Card(preprocessing=shape, labels=tuple(Label(str(i), n) for i, n in enumerate(names)))
    )
    (expected,) = cl.localize(net, "photos", top=3)
    rows = [
        r for f in (desk / "seen/localizations").glob("*.parquet") for r in parquet.read_table(f).to_pylist()
    ]
    assert [(r["class_name"], r["map_method"], r["status"]) for r in rows] == [
        (e.class_name, e.map_method, e.status) for e in expected
    ]
    np.testing.assert_allclose([r["logit"] for r in rows], [e.logit for e in expected], rtol=1e-4)
    np.testing.assert_allclose(
        [[r[c] for c in ("x0", "y0", "x1", "y1")] for r in rows], [e.boxes[0].box.corners for e in expected], atol=1e-2
    )  # fmt: skip


def test_resume_needs_the_same_pixels_and_weights(desk, capsys):
    run = ["localize", "plain.png", "--out", "out", "--overlays", "0", *OWN]
    assert main(run) == 0
    other = ["--mean", "0.1", "0.2", "0.3", "--std", "0.5", "0.25", "0.4"]
    assert main([*run, *other, "--resume"]) == 2
    assert "preprocessing" in capsys.readouterr().err
    assert main([*run, "--resume"]) == 0
    torch.save(seeded(own_networks.gap, seed=5).state_dict(), "mine.pth")
    assert main([*run, "--resume"]) == 2
    assert "network_sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--network", "embedded", *OWN], "--network and --arch together"),
        (["--arch", "embedded"], "do you"),
        (["--arch", "resnet18", "--weights", "mine.pth"], "did you mean 'torchvision/resnet18'?"),
        (["--arch", "lucidda", "--weights", "mine.pth"], "did you mean 'lucida'?"),
        (["--network", "mine.pth"], "--arch NAME --weights mine.pth"),
        ([*OWN, "--mean", "0", "0", "0"], "--mean and --std go together"),
        ([*OWN, "--mean", "0.5", "--std", "0.5"], "1 numbers; allowed: 3"),
        ([*OWN, "--mean", "104", "117", "123", "--std", "1", "1", "1"], "--range"),
        ([*OWN, "--mean", "0", "0", "0", "--std", "1", "0", "1"], "--std; got 0; allowed: > 0"),
        ([*OWN, "--range", "255"], "no --mean and --std"),
        ([*OWN, "--channels", "grey"], "give --mean and --std with 1 number each"),
        ([*OWN, "--crop", "64"], "at most --size 32"),
        ([*OWN, "--num-classes", "0"], "--num-classes; got 0"),
        ([*OWN, "--num-classes", "9"], "the weights have 4 classes, the network 9: --num-classes 4"),
        ([*OWN, "--labels", "three.txt"], "3 names; allowed: 4"),
        ([*OWN, "--labels", "gap.txt"], "an empty line 2"),
        (["--arch", "own_networks:one_output", "--weights", "none"], "--activation sigmoid"),
        (["--arch", "own_networks:grey", "--weights", "none"], "fails on a blank picture of 3 × 224 × 224"),
    ],
)  # fmt: skip
def test_contradictions_are_one_line_and_exit_2(desk, capsys, options, said):
    (desk / "three.txt").write_text("a\nb\nc\n")
    (desk / "gap.txt").write_text("a\n\nb\nc\n")
    said = "--network embedded" if said == "do you" else said
    assert main(["localize", "plain.png", "--out", "out", *options]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not (desk / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "ant\nbee\n", [("0", "ant"), ("1", "bee")]),
        ("a.txt", "n1\tant\nn2\tbee", [("n1", "ant"), ("n2", "bee")]),
        ("a.csv", "name,id\nant,n1\nbee,n2\n", [("n1", "ant"), ("n2", "bee")]),
        ("a.json", '["ant", "bee"]', [("0", "ant"), ("1", "bee")]),
        ("a.json", '{"bee": 1, "ant": 0}', [("0", "ant"), ("1", "bee")]),
        ("a.json", '{"1": "bee", "0": "ant"}', [("0", "ant"), ("1", "bee")]),
        ("a.json", '{"0": ["n1", "ant"], "1": ["n2", "bee"]}', [("n1", "ant"), ("n2", "bee")]),
        ("a.json", '{"ant": 0, "bee": 2}', "indices that lack 1"),
        ("a.json", "3", "got int"),
        ("a.txt", "", "one name a line"),
    ],
)
def test_label_files(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            read_labels(tmp_path / name)
    else:
        assert [(one.id, one.name) for one in read_labels(tmp_path / name)] == expected
