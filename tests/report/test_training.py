"""The page of a training run: what the log says, its curves at the right places, nothing that asks a network."""

import json
import re

import pytest

from camlucida.report import training


def lines(*events) -> str:
    return "".join(json.dumps(e) + "\n" for e in events)


COMMAND = {"kind": "command", "command": ["camlucida train", "my pictures", "--out", "run"]}
START = {"kind": "start", "recipe": "small", "pictures": 1234, "classes": 2, "steps": 8, "steps_per_epoch": 4, "from_step": 0, "parameters": 5678,
         "device": "cpu", "processes": 2, "precision": "32-true", "versions": {"torch": "2.15"}}  # fmt: skip


def step(n, loss, rate=0.1, error=50.0):
    return {
        "kind": "step",
        "step": n,
        "epoch": 1,
        "loss": loss,
        "error": error,
        "rate": rate,
        "pictures_per_second": 9.0,
    }


def epoch(n, top1, seconds):
    return {
        "kind": "epoch",
        "epoch": n,
        "step": 4 * n,
        "loss": 1.0 / n,
        "error": 40.0,
        "top1": top1,
        "top5": 99.0,
        "seconds": seconds,
    }


DONE = {
    "kind": "done",
    "network": "n",
    "step": 8,
    "seconds": 7.0,
    "best": {"epoch": 2, "score": 75.0, "top1": 75.0, "top5": 99.0},
}


@pytest.fixture
def run(tmp_path):
    text = (
        lines(COMMAND, START, step(2, 4.0), step(4, 9.0), epoch(1, 50.0, 3.0), step(6, 9.0)) + '{"kind": "st'
    )
    text += "\n" + lines(
        COMMAND, {**START, "from_step": 4}, step(6, 2.0), step(8, 1.0), epoch(2, 75.0, 7.0), DONE
    )
    (tmp_path / "log.jsonl").write_text(text)
    (tmp_path / "recipe.toml").write_text('name = "small"\nabout = "<b>&"\n')
    (tmp_path / "rejected.csv").write_text('path,reason\n"a,b.png",<script>broken\n')
    return tmp_path


def test_steps_made_again_count_once_and_sessions_add_up(run):
    log = training.read(run / "log.jsonl")
    assert [(n, one["loss"]) for n, one in log.steps.items()] == [(2, 4.0), (4, 9.0), (6, 2.0), (8, 1.0)]
    assert list(log.epochs) == [1, 2]
    assert log.seconds == 10.0
    assert len(log.commands) == 2


def test_the_page_says_it_all_and_asks_nothing_of_any_network(run):
    file = training.save(run)
    text = file.read_text(encoding="utf-8")
    assert file.name == "training.html"
    for words in ("75.0 % of the tuning split right, after epoch 2", "1,234 of 2 classes", "2 × cpu", "32-true", "torch 2.15", "10.0 s",
                  "camlucida train &#39;my pictures&#39; --out run", "a,b.png", "1 picture could not be read"):  # fmt: skip
        assert words in text, words
    assert "<script" not in text
    assert "&lt;script&gt;broken" in text
    assert "&lt;b&gt;&amp;" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert [f.name for f in run.glob("*.tmp*")] == []


def test_curves_lie_where_their_values_are():
    """Loss 0 … 10 over two epochs of four steps: the axes are exact."""
    svg = training.chart([("training", [(2, 0.0), (4, 10.0), (8, 5.0)])], 4.0)
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]*)"', svg)[1].split()]
    width, height = (
        training.WIDTH - training.LEFT - training.RIGHT,
        training.HEIGHT - training.TOP - training.BOTTOM,
    )
    right = [
        (training.LEFT + width * x / 8, training.TOP + height * (10 - y) / 10)
        for x, y in ((2, 0), (4, 10), (8, 5))
    ]
    assert points == [pytest.approx(p, abs=0.06) for p in right]
    assert "over epochs 0 to 2" in svg


def test_a_logarithmic_axis_has_powers_of_ten_and_leaves_zeros_out():
    svg = training.chart([("rate", [(1, 0.1), (2, 1e-5), (3, 0.0)])], 1.0, log_scale=True)
    points = re.search(r'points="([^"]*)"', svg)[1].split()
    assert len(points) == 2
    assert points[0].endswith(f",{training.TOP:.1f}")
    assert points[1].endswith(f",{training.HEIGHT - training.BOTTOM:.1f}")


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (1.3, 1.9, [1.2, 1.4, 1.6, 1.8, 2.0]), (5, 5, [5, 6]), (0, 0, [0, 0.2]), (-3, 4, [-4, -2, 0, 2, 4])],
)  # fmt: skip
def test_marks_are_round_and_enclose(low, high, marks):
    assert training.ticks(low, high) == pytest.approx(marks)


def test_long_curves_are_averaged_in_groups():
    points = [(float(i), float(i % 2)) for i in range(3 * training.POINTS + 1)]
    found = training.thinned(points)
    assert len(found) <= training.POINTS
    assert found[0] == (1.5, 0.5)
    assert training.thinned(points[:10]) == points[:10]


def test_a_run_without_any_epoch_or_tuning_split_has_a_page(tmp_path):
    (tmp_path / "log.jsonl").write_text(lines(COMMAND, START))
    assert "no epoch is done" in training.save(tmp_path).read_text(encoding="utf-8")
    assert not (tmp_path / "curves.png").exists()
    (tmp_path / "log.jsonl").write_text(
        lines(COMMAND, START, step(2, 4.0), {**epoch(1, 0, 1.0), "loss": 0.25})
    )
    assert "loss 0.250 after epoch 1" in training.save(tmp_path).read_text(encoding="utf-8")
    assert (tmp_path / "curves.png").exists()


def test_a_short_run_shows_its_epochs_where_they_tell_more_than_its_steps(tmp_path):
    """The log has a step line for each 20 steps and for the last: of 8 steps, one."""
    (tmp_path / "log.jsonl").write_text(lines(START, epoch(1, 50.0, 3.0), step(8, 0.5), epoch(2, 75.0, 7.0)))
    loss, error, _ = training.panels(training.read(tmp_path / "log.jsonl"))
    assert loss[2] == [("training", [(4, 1.0), (8, 0.5)])]
    assert error[2][0] == ("training", [(4, 40.0), (8, 40.0)])


def test_facts_of_numbers_and_of_weights_that_were_there_before():
    start = {
        **START,
        "classes": 0,
        "started_from": "trunk.pth",
        "copied": "8 of 10 parameters",
        "fresh_layers": "head",
    }
    told = dict(training.facts(training.Log(start={k: v for k, v in start.items() if k != "kind"}), 0))
    assert told["Pictures"] == "1,234"
    assert told["Weights from"] == "trunk.pth: 8 of 10 parameters; new: head"
