"""Killed at any moment, at every touch of the disk, without room: finished parts stay, and a resumed run ends equal."""

import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from camlucida import pipeline, report
from camlucida.cli import main
from camlucida.errors import CamlucidaError, UsageError
from camlucida.report import ResultFolder
from camlucida.values import Label
from report import report_values as made
from robust import helpers

import kill_study  # isort: skip  (of the benchmarks: helpers knows the way)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forked and killed by signals")

LABELS = [Label(f"n{i:08d}", f"class {i}") for i in range(10)]
MANIFEST = {"command": ["camlucida"], "settings": {"part": 2}}
PARTS = [
    ([made.two_boxes("a/one.jpg"), made.broken_map("a/two.jpg")], [made.refused()]),
    ([], [made.refused("b/x.jpg"), made.refused("b/y.jpg")]),
    ([made.broken_map("c/three.jpg")], []),
]
TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def run(folder):
    """Begins or goes on, to the end."""
    results = ResultFolder.open(folder, MANIFEST, resume=True, overlays=2)
    parts = set(range(len(PARTS)))
    for index in sorted(parts - (parts if results.done else results.done_parts())):
        seen, rejected = PARTS[index]
        names = {one.source.name: one.source.relative.replace("/", "_") for one in seen}
        results.write_part(index, seen, rejected, names)
    results.finish(LABELS, csv=True)
    return 0


def at_touch(folder, number, act, touches=TOUCHES):
    """Calls `act(path)` when this process is about to touch the folder for the `number`th time. It cannot be undone:
    only for forked processes."""
    counted = itertools.count(1)

    def hook(event, arguments):
        if event not in touches or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        if event == "open" and not arguments[2] & WRITING:
            return
        path = os.fsdecode(arguments[0])
        if path.startswith(str(folder)) and next(counted) == number:
            act(path)

    sys.addaudithook(hook)


def killed(folder, number):
    """Runs in a process that is gone at its `number`th touch; every other time what it was writing is half there."""

    def die(path):
        for half in folder.rglob(".*.partial") if number % 2 else ():
            os.truncate(half, half.stat().st_size // 2)
        os._exit(137)

    def work():
        at_touch(folder, number, die)
        return run(folder)

    return helpers.in_child(work)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    run(folder)
    return folder


def check_equal(whole, folder):
    assert kill_study.differences(whole, folder) == []
    assert (folder / "report.html").is_file()
    assert not list(folder.rglob("*.partial"))
    assert not (folder / ".work").exists()


def test_killed_at_every_touch_of_the_disk_and_once_more_on_the_way_back(whole, tmp_path):
    rng = np.random.default_rng(0)
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        code = killed(folder, number)
        assert code in (0, 137)
        if code == 0:
            break
        assert killed(folder, int(rng.integers(1, 40))) in (0, 137)
        run(folder)
        check_equal(whole, folder)
        shutil.rmtree(folder)
    assert number > 40  # or the touches were not seen


def test_a_finished_run_that_is_overwritten_and_killed_can_be_overwritten_again(whole, tmp_path):
    for number in (1, 4, 9, 14):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)

        def work(folder=folder, number=number):
            at_touch(folder, number, lambda path: os._exit(137))
            ResultFolder.open(folder, MANIFEST, overwrite=True)
            return 0

        assert helpers.in_child(work) == 137
        run(folder)
        check_equal(whole, folder)


def refused_in_one_line(folder, words):
    """The exit code of a child that runs and must be refused, by an error that says so in one line."""
    try:
        run(folder)
    except CamlucidaError as error:
        said = str(error)
        if isinstance(error, UsageError) or "\n" in said or words not in said:
            print(said, file=sys.stderr)
            return 1
        return 28
    return 0


def test_a_disk_that_is_full_at_every_touch(whole, tmp_path):
    refused = 0
    for number in itertools.count(1):
        folder = tmp_path / str(number)

        struck = []

        def full(path, struck=struck):
            struck.append(path)
            raise OSError(28, "No space left on device", path)

        def work(folder=folder, number=number, full=full, struck=struck):
            at_touch(folder, number, full, ("open", "os.rename", "os.mkdir"))
            code = refused_in_one_line(folder, "No space left on device")
            return 27 if code == 0 and struck else code  # no room to make a folder that is there does no harm

        code = helpers.in_child(work)
        assert code in (0, 27, 28)
        if code == 0:
            break
        refused += code == 28
        if number % 4 == 1 or code == 27:  # the others end like one of these
            run(folder)
            check_equal(whole, folder)
        shutil.rmtree(folder, ignore_errors=True)
    assert refused > 25


@pytest.mark.parametrize("most", [100, 2000, 6000, 12000])
def test_files_that_cannot_grow(whole, tmp_path, most):
    """The system itself refuses in the middle of a write."""
    folder = tmp_path / "out"

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return refused_in_one_line(folder, "ile too large")

    assert helpers.in_child(work) == 28
    run(folder)
    check_equal(whole, folder)


def test_what_is_safe_is_said(tmp_path, monkeypatch):
    results = ResultFolder.open(tmp_path / "out", MANIFEST)
    results.write_part(0, PARTS[0][0], [], {one.source.name: one.source.relative[2:] for one in PARTS[0][0]})

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        CamlucidaError, match=r"2 pictures in 1 finished part are safe; mend that and --resume goes on$"
    ):
        results.write_part(1, *PARTS[1], {})


@pytest.fixture
def disk():
    """A real disk of 48 kB."""
    place = tempfile.mkdtemp()
    made_it = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "none", place], capture_output=True)
    if made_it.returncode:
        os.rmdir(place)
        pytest.skip("a small disk can only be mounted by root")
    yield Path(place)
    subprocess.run(["umount", place], check=True)
    os.rmdir(place)


def test_a_real_full_disk(disk, whole):
    folder = disk / "out"
    assert helpers.in_child(lambda: refused_in_one_line(folder, "No space left on device")) == 28
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    run(folder)
    check_equal(whole, folder)


def test_a_read_only_disk_is_noticed_at_once(disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for folder in (disk, disk / "out", disk / "deep" / "out"):
        with pytest.raises(
            CamlucidaError, match=r"^cannot use .*; got (Read-only file system|this folder takes no files)"
        ):
            ResultFolder.open(folder, MANIFEST)


@pytest.fixture
def photos(tmp_path):
    kill_study.make_pictures(tmp_path / "photos", 12)
    return tmp_path / "photos"


def words(small, photos, out, *more):
    return [
        "localize",
        str(photos),
        "--network",
        small,
        "--out",
        str(out),
        "--csv",
        "--part",
        "2",
        "--top",
        "2",
        *more,
    ]


def test_a_folder_that_takes_no_files_is_noticed_before_the_work(
    small, photos, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    (out / "overlays").mkdir(parents=True)
    (out / "manifest.json").write_text('{"tool": "camlucida", "schema_version": 1, "state": "running"}')
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "overlays" and access(path, mode))
    monkeypatch.setattr(pipeline, "look", lambda *a, **k: pytest.fail("it went to work"))
    assert main(words(small, photos, out, "--overwrite")) == 1
    said = capsys.readouterr().err
    assert f"cannot use {out / 'overlays'}; got this folder takes no files" in said
    assert said.count("\n") == 1


def test_a_folder_of_somebody_else(small, photos, tmp_path):
    """Without root's rights."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o555)

    def work():
        if os.getuid() == 0:
            os.setuid(65534)
        return refused_in_one_line(place / "out", "Permission denied") + refused_in_one_line(
            place, "takes no files"
        )

    try:
        assert helpers.in_child(work) == 2 * 28
    finally:
        os.rmdir(place)


def test_one_run_in_a_folder_at_a_time(small, photos, tmp_path, capsys):
    out = tmp_path / "out"
    with report.alone(out):
        assert main(words(small, photos, out)) == 2
    said = capsys.readouterr().err
    assert "another camlucida is at work" in said
    assert said.count("\n") == 1
    assert list(out.iterdir()) == []

    def taken_and_died():
        report.alone(out).__enter__()
        os._exit(7)

    assert helpers.in_child(taken_and_died) == 7
    with report.alone(out):  # the lock died with its process
        pass
    with report.alone(tmp_path / "deep" / "new"):
        assert (tmp_path / "deep" / "new").is_dir()
    (tmp_path / "file").write_text("mine")
    assert main(words(small, photos, tmp_path / "file")) == 2


def parts(out):
    return len(list(out.glob("localizations/part-*.parquet")))


def ready():
    """The watcher comes first where processors are few; Ctrl-C is heard also where a shell in the background, which ignores
    it, started the tests."""
    os.nice(10)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGINT] * 2, [signal.SIGKILL]], ids=["ctrl-c", "twice", "kill"]
)
def test_signals_while_it_works(small, photos, tmp_path, signals):
    """Twice in a row, in forked processes; then to the end."""
    kill_study.make_pictures(photos, 40)
    whole, out, said = tmp_path / "whole", tmp_path / "out", tmp_path / "said"
    assert main(words(small, photos, whole)) == 3
    rng = np.random.default_rng(0)

    def work():
        ready()
        os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        return main(words(small, photos, out, "--resume"))

    for goal in (2, 8):
        child = helpers.begun(work)
        code = None
        while code is None and parts(out) < goal:
            time.sleep(0.002)
            ended, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended else None
        assert code is None, said.read_text()
        for one in signals:
            time.sleep(rng.uniform(0, 0.02))
            os.kill(child, one)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        text = said.read_text()
        if signals == [signal.SIGINT]:
            assert (code, text.count("\n")) == (130, 2), text
        assert code in (130, -signal.SIGKILL) or len(signals) == 2, text
        assert ("interrupted; the same command with --resume goes on" in text) == (code == 130), text
        assert parts(out) < 20
    assert main(words(small, photos, out, "--resume")) == 3
    check_equal(whole, out)


@pytest.mark.timeout(1800)
def test_a_process_of_its_own_is_stopped_and_killed(small, photos, tmp_path, capsys):
    kill_study.make_pictures(photos, 40)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(words(small, photos, whole)) == 3
    for goal, one in ((2, signal.SIGINT), (8, signal.SIGKILL)):
        process = subprocess.Popen(
            [sys.executable, "-m", "camlucida", *words(small, photos, out, "--resume")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=ready,
        )  # fmt: skip
        while process.poll() is None and parts(out) < goal:
            time.sleep(0.002)
        process.send_signal(one)
        _, said = process.communicate()
        assert process.returncode == (130 if one == signal.SIGINT else -one), said
        assert "Traceback" not in said
    assert main(words(small, photos, out, "--resume")) == 3
    check_equal(whole, out)
    assert capsys.readouterr().err.count("36 pictures, 4 rejected") == 2


def test_the_comparison_sees_a_difference(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "other")
    assert kill_study.differences(whole, tmp_path / "other") == []
    (tmp_path / "other" / "overlays" / "a_one.jpg-1.png").unlink()
    (tmp_path / "other" / "rejected.csv").write_text("path,reason\n")
    assert kill_study.differences(whole, tmp_path / "other") == ["overlays/a_one.jpg-1.png", "rejected.csv"]
