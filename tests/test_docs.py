"""What README and docs show runs; what they link to is there; nothing is left unmeasured."""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

import camlucida as cl
from camlucida.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder as the README's reader has it: cat.jpg, photos/, and a network of their own."""
    skimage = pytest.importorskip("skimage")
    pictures = Path(skimage.__file__).parent / "data"
    (tmp_path / "photos").mkdir()
    Image.open(pictures / "chelsea.png").save(tmp_path / "cat.jpg")
    for name in ("chelsea.png", "coffee.png"):
        shutil.copy(pictures / name, tmp_path / "photos")
    (tmp_path / "my_package.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_package

    torch.save(my_package.build().state_dict(), "own.pth")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        resnet = torchvision.models.resnet18(num_classes=3)
    torch.save(resnet.state_dict(), "mine.pth")  # stands in for weights that somebody trained
    torch.save(resnet, "whole.pth")
    Path("names.txt").write_text("cat\ndog\ncup\n")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_python_blocks_run(page, desk):
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})


# Pages whose commands run on the desk as they stand, and how many there are without --download.
COMMANDS = {"README.md": 2, "docs/how-to/own-network.md": 8}


@pytest.mark.parametrize("page", COMMANDS)
def test_commands_run(page, desk, capsys):
    ran = 0
    for block in blocks(ROOT / page, "console"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["camlucida"] and "--download" not in words:
                assert main(words[1:]) == 0, line
                if "--out" in words:
                    written = {"localize": "report.html", "layers": "layers.html"}[words[1]]
                    assert (desk / words[words.index("--out") + 1] / written).is_file()
                elif words[1] == "pack":
                    assert (desk / words[2]).is_file()
                ran += 1
            elif words[:2] == ["python", "-c"]:
                exec(words[2], {})
                ran += 1
    assert ran == COMMANDS[page]


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "how-to").glob("*.md")), ids=lambda p: p.name)
def test_how_to_commands_run(page, desk, capsys):
    ran = 0
    for block in blocks(page, "console"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["camlucida"] and "--download" not in words:
                assert main(words[1:]) == 0, line
                ran += 1
    assert ran


def test_doctors_commands_run(desk, capsys):
    lines = [
        line
        for block in blocks(ROOT / "docs" / "how-to" / "doctor.md", "console")
        for line in block.splitlines()
    ]
    assert len(lines) == 2
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line
    assert (desk / "checked" / "doctor.html").is_file()
    assert "too early a layer" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_and_named_files_are_there(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for file in re.findall(r"`((?:maps|boxes|networks|evaluate|train|images|cli|report)/[\w/]+\.py)`", text):
        assert (ROOT / "src" / "camlucida" / file).is_file(), file
    for file in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_is_left_to_fill_in(page):
    assert "@@" not in page.read_text(encoding="utf-8")


def test_readme_fits_on_two_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 90


def test_the_embedded_network_is_whole():
    net = cl.load("embedded")
    file = Path(cl.__file__).parent / "networks" / "weights" / "lucida-tiny200-v1.safetensors"
    assert os.path.getsize(file) <= 12_000_000
    assert len(net.card.labels) == 200
    assert all(re.fullmatch(r"n\d{8}", label.id) and label.name for label in net.card.labels)
    assert net.card.localization.chosen_on
    for size in ((64, 64), (65, 97), (130, 71)):
        maps = cl.CAM()(net, torch.zeros(1, 3, *size), cl.ClassTarget(3))
        assert maps.values.shape[2:] == tuple(-(-s // 8) for s in size)
        bias = net.structure(torch.zeros(1, 3, *size)).head.bias[3]
        torch.testing.assert_close(
            maps.values.mean() + bias.detach(), maps.scores[0, 0], rtol=1e-5, atol=1e-5
        )
