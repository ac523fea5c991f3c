"""Every block of README and docs runs, page by page and from top to bottom, on a desk as a reader has it; what they link
to and name is there; the reference is up to date. What is not run is in one of the two tables below, with its reason."""

import argparse
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torchvision
import tyro
from PIL import Image

import camlucida as cl
from camlucida.cli import VERBS, main, module_of
from camlucida.train import recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Commands that begin so, or have such a word, are read but not run: file, verb and options must exist.
ONLY_PARSED = {
    "--download": "fetches published weights",
    "camlucida train tiny-imagenet": "a study: the whole of Tiny-ImageNet, an hour and more on two cores",
    "python benchmarks/": "studies, on data that is not in the repository",
    "make ": "installs, or runs for minutes: the target must be in the Makefile",
}
# Commands that are not even read.
NOT_READ = {
    "source .venv/bin/activate": "the tests run in an environment that is active already",
}


# --- what lies on the desk; each made where a page names it --------------------------------------------------


def _picture(name: str) -> Callable[[Path], None]:
    """A photograph of scikit-image, small: a page is about the way, not about the result."""

    def make(file: Path) -> None:
        skimage = pytest.importorskip("skimage")
        picture = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
        picture.thumbnail((150, 150))
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)

    return make


def _class_folders(folder: Path) -> None:
    """Two classes that the embedded network knows: of each seven pictures to train on, some tuning pictures by their names,
    and one to judge, with its box."""
    rows = ["path,wnid,x0,y0,x1,y1"]
    for name, photograph in (("n02124075", "chelsea.png"), ("n07920052", "coffee.png")):
        for number in range(7):
            _picture(photograph)(folder / "train" / name / f"{name}_{number}.jpg")
        _picture(photograph)(folder / "val" / name / f"{name}.jpg")
        rows.append(f"val/{name}/{name}.jpg,{name},30,10,120,90")
    (folder / "val" / "boxes.csv").write_text("\n".join(rows) + "\n")


def _build(classes: int = 3) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.resnet18(num_classes=classes)


def _own_weights(file: Path) -> None:
    import my_package

    torch.save(my_package.build().state_dict(), file)


CODE = """from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""
# What a page may name: the file, the words that mean it, how it is made.
DESK: list[tuple[str, tuple[str, ...], Callable[[Path], object]]] = [
    ("cat.jpg", ("cat.jpg",), _picture("chelsea.png")),
    ("cup.jpg", ("cup.jpg",), _picture("coffee.png")),
    ("photos/chelsea.png", ("photos/",), _picture("chelsea.png")),
    ("photos/coffee.png", ("photos/",), _picture("coffee.png")),
    ("pictures", ("pictures/train", "pictures/val"), _class_folders),
    ("names.txt", ("names.txt",), lambda file: file.write_text("cat\ndog\ncup\n")),
    ("my_package.py", ("my_package", "own.pth"), lambda file: file.write_text(CODE)),
    ("own.pth", ("own.pth",), _own_weights),
    ("mine.pth", ("mine.pth",), lambda file: torch.save(_build().state_dict(), file)),
    ("mine.pth", ("my_package:build --weights mine.pth",), _own_weights),
    ("whole.pth", ("whole.pth",), lambda file: torch.save(_build(), file)),
]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A function that lays what a page names into an empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_package", None)

    def lay(text: str) -> None:
        for file, words, make in DESK:
            if any(word in text for word in words):
                make(tmp_path / file)

    yield lay
    sys.modules.pop("my_package", None)


# --- reading and running blocks ------------------------------------------------------------------------------


class Block(NamedTuple):
    language: str
    line: int
    code: str


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order. A fence that is not closed fails."""
    language, start, kept = None, 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```+\s*(\S*)", line)
        if fence and language is None:
            language, start, kept = fence[1], number, []
        elif fence:
            assert not fence[1], f"{page.name}:{start}: a block that is not closed"
            yield Block(language, start, "\n".join(kept))
            language = None
        elif language is not None:
            kept.append(line)
    assert language is None, f"{page.name}:{start}: a block that is not closed"


def commands(block: Block) -> Iterator[tuple[int, str]]:
    """Line number and text of each command; lines that end in a backslash go on."""
    joined, start = "", 0
    for number, line in enumerate(block.code.splitlines(), block.line + 1):
        start = start if joined else number
        joined += line.strip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            if joined and not joined.startswith("#"):
                yield start, joined
            joined = ""


def declared(line: str, table: dict[str, str]) -> str | None:
    return next((key for key in table if line.startswith(key) or key in line.split()), None)


class Understood(Exception):
    """Raised by a command line that was read, in place of doing what it says."""


def read_only(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails unless the command's file, verb, target and options exist."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert targets is not None
        assert set(words[1:] or [""]) <= set(targets[1].split())
    elif words[0] == "camlucida":
        module, _, rest = module_of(words[1:])
        tyro.cli(module.Options, args=rest, config=(tyro.conf.FlagCreatePairsOff,))
    elif "argparse" not in (ROOT / words[1]).read_text(encoding="utf-8"):
        assert len(words) == 2, "it takes no options"
    else:
        parse = argparse.ArgumentParser.parse_args

        def only_parse(self, args=None, namespace=None):
            parse(self, args, namespace)
            raise Understood

        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
            patch.setattr(sys, "argv", words[1:])
            patch.syspath_prepend((ROOT / words[1]).parent)  # as Python does for a script
            with pytest.raises(Understood):
                runpy.run_path(str(ROOT / words[1]), run_name="__main__")


def run(line: str, names: dict) -> None:
    """Runs one command of a console block here, in this process. Fails for a kind that it does not know."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["camlucida"]:
        assert words[1] in VERBS, f"there is no verb {words[1]}"
        assert main(words[1:]) == 0
    elif words[:2] == ["python", "-c"]:
        exec(words[2], names)
    else:
        pytest.fail("a kind of command that this test does not know: teach it, or declare it with a reason")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(p))], ids=name_of)
def test_every_block_runs(page, desk, capsys, monkeypatch):
    desk("\n".join(block.code for block in blocks(page)))
    names: dict = {"__name__": "page"}
    at = ""
    try:
        for block in blocks(page):
            at = f"{name_of(page)}:{block.line}"
            if block.language == "python":
                # Empty lines in front, so that a traceback has the page's own line numbers.
                exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
            elif block.language == "console":
                for number, line in commands(block):
                    at = f"{name_of(page)}:{number}: {line}"
                    if declared(line, NOT_READ):
                        continue
                    read_only(line, monkeypatch) if declared(line, ONLY_PARSED) else run(line, names)
            elif block.language == "toml":  # a recipe
                Path("block.toml").write_text(block.code, encoding="utf-8")
                recipe.load("block.toml")
            else:
                pytest.fail(
                    f"a block of kind {block.language!r}: python, console and toml are those that run"
                )
    except BaseException as error:
        error.add_note(f"at {at}\n{capsys.readouterr().err[-2000:]}")
        raise


def inline(page: Path) -> list[str]:
    """Whole commands in running text: `make bench`; not those with a gap in them, as `camlucida VERB …`."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"`((?:camlucida|make|python) [^`]+)`", text)
    return [" ".join(one.split()) for one in found if not re.search("…|VERB|NAME|FOLDER", one)]


@pytest.mark.parametrize("page", [p for p in PAGES if inline(p)], ids=name_of)
def test_commands_in_running_text_can_be_read(page, monkeypatch):
    for line in inline(page):
        try:
            words = line.split()
            if words[0] == "camlucida" and len(words) == 2:
                assert words[1] in VERBS
            else:
                read_only(line, monkeypatch)
        except BaseException as error:
            error.add_note(f"at {name_of(page)}: {line}")
            raise


def test_nothing_is_declared_in_vain():
    lines = [text for p in PAGES for b in blocks(p) if b.language == "console" for _, text in commands(b)]
    lines += [text for p in PAGES for text in inline(p)]
    used = {declared(line, table) for line in lines for table in (ONLY_PARSED, NOT_READ)}
    assert {*ONLY_PARSED, *NOT_READ} <= used


# --- what pages point to -------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_named_files_are_there(page):
    text = text_of(page)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), f"{target}#{anchor}"
    for file in re.findall(
        r"`((?:maps|boxes|networks|evaluate|train|images|cli|report|recipes)/[\w/]+\.(?:py|toml))`", text
    ):
        assert (ROOT / "src" / "camlucida" / file).is_file(), file
    for file in re.findall(r"`((?:tests|docs|benchmarks)/[\w/]+\.(?:py|md))`", text):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_nothing_is_left_to_fill_in(page):
    assert "@@" not in text_of(page)


def test_readme_fits_on_two_screens():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 90


def test_the_twelve_questions_have_their_anchors():
    asked = {
        "layer", "target", "binary", "regression", "vit-grid", "blank-map", "no_grad", "memory", "boxes", "threshold",
        "export", "comparing-images",
    }  # fmt: skip
    page = ROOT / "docs" / "how-to" / "questions.md"
    assert anchors(page) == asked | {"twelve-questions"}
    for section in text_of(page).split("\n## ")[1:]:
        assert "```python" in section, f"{section.splitlines()[0]} has nothing that runs"


def test_the_reference_is_up_to_date():
    written = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["text"]()
    assert text_of(ROOT / "docs" / "reference.md") == written, "run: python docs/make_reference.py"


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
