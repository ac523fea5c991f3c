"""Predictions come back from their file as they were; fusion, submission and every figure against values by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from camlucida import metrics
from camlucida.errors import UsageError
from camlucida.evaluate import predictions, scores
from camlucida.evaluate.classify import Classified
from camlucida.evaluate.predictions import Predictions
from camlucida.values import Label

CLASSES = tuple(Label(f"n{i}", f"class {i}") for i in range(6))


def made(rows, labels, **more):
    names = tuple(f"set/{i}.jpg" for i in range(len(rows)))
    return Predictions(names, tuple(labels), np.array(rows, np.float32), CLASSES[: len(rows[0])], "net", "dense", **more)  # fmt: skip


@pytest.fixture
def three():
    return made([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.75, 0.125, 0.125]], [(0,), (2,), ()], rejected=(("x.jpg", "empty file"),))  # fmt: skip


# --- files ----------------------------------------------------------------------------------------------------


def test_a_file_gives_back_everything_exactly(tmp_path):
    rng = np.random.default_rng(0)
    said = made(rng.random((7, 3)), [(0,), (1, 2), (), (2,), (0,), (1,), (0,)], activation="sigmoid", difficult=((), (2,), (), (), (), (), ()), rejected=(("ü.jpg", "why"),))  # fmt: skip
    predictions.save(said, tmp_path / "said.parquet")
    back = predictions.read(tmp_path / "said.parquet")
    for name in ("paths", "labels", "classes", "network", "protocol", "activation", "difficult", "rejected"):
        assert getattr(back, name) == getattr(said, name), name
    assert np.array_equal(back.probabilities, said.probabilities)
    assert back.probabilities.dtype == np.float32
    assert predictions.is_file(tmp_path / "said.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["said.parquet"]


def test_the_table_is_one_that_others_can_read(three, tmp_path):
    predictions.save(three, tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["path", "labels", "difficult", "probabilities"]
    assert table.schema.field("probabilities").type == pa.list_(pa.float32())
    assert table["labels"].to_pylist() == [[0], [2], []]
    about = json.loads(table.schema.metadata[predictions.KEY])
    assert about["network"] == "net"
    assert about["classes"] == [["n0", "class 0"], ["n1", "class 1"], ["n2", "class 2"]]


def test_no_picture_at_all_is_still_a_file(tmp_path):
    none = Predictions((), (), np.zeros((0, 3), np.float32), CLASSES[:3], rejected=(("a", "b"),))
    predictions.save(none, tmp_path / "a.parquet")
    assert predictions.read(tmp_path / "a.parquet").rejected == (("a", "b"),)


def test_other_files_are_refused_in_one_line(three, tmp_path):
    manifest = tmp_path / "manifest.parquet"
    parquet.write_table(pa.table({"path": ["a.jpg"], "label": ["cat"]}), manifest)
    assert not predictions.is_file(manifest)
    assert not predictions.is_file(tmp_path / "nothing.parquet")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    assert not predictions.is_file(broken)
    predictions.save(three, good := tmp_path / "good.parquet")
    table = parquet.read_table(good)
    rows = pa.array([[0.5], [0.25, 0.5, 0.25], [1.0, 0.0, 0.0]], pa.list_(pa.float32()))
    parquet.write_table(table.set_column(3, "probabilities", rows), ragged := tmp_path / "ragged.parquet")
    for file in (manifest, broken, ragged, tmp_path / "nothing.parquet"):
        with pytest.raises(UsageError, match=r"predictions in .*--predictions wrote"):
            predictions.read(file)


def test_shapes_and_labels_are_checked():
    with pytest.raises(UsageError, match="one row a picture, 3 classes"):
        Predictions(("a",), ((0,),), np.zeros((1, 2), np.float32), CLASSES[:3])
    with pytest.raises(UsageError, match=r"no class.*0 … 2"):
        made([[0.5, 0.25, 0.25]], [(3,)])


def test_a_stream_is_collected_with_its_labels():
    stream = [Classified("a", np.array([0.25, 0.75])), Classified("b", None, "empty file"), Classified("c", np.array([np.nan, 1])), Classified("d", np.array([1.0, 0]))]  # fmt: skip
    found = predictions.collect(stream, [(1,), (0,), (0,), (0, 1)], CLASSES[:2], difficult=[(), (), (), (1,)], network="n", protocol="p", activation="sigmoid")  # fmt: skip
    assert (found.paths, found.labels, found.difficult) == (("a", "d"), ((1,), (0, 1)), ((), (1,)))
    assert found.probabilities.tolist() == [[0.25, 0.75], [1, 0]]
    assert [path for path, _ in found.rejected] == ["b", "c"]
    with pytest.raises(UsageError, match="2, one per output"):
        predictions.collect(stream, [()] * 4, CLASSES, network="n")


# --- fusion and submission -------------------------------------------------------------------------------------


def test_fusion_averages_by_path_not_by_row(three):
    other = replace(
        three, paths=("set/2.jpg", "set/0.jpg", "else.jpg"), labels=((), (0,), (1,)), network="other", protocol="ten-crop",
        probabilities=np.array([[0.25, 0.5, 0.25], [0, 0, 1], [1, 0, 0]], np.float32), rejected=(),
    )  # fmt: skip
    found = predictions.fuse([three, other])
    assert found.paths == ("set/0.jpg", "set/2.jpg")
    np.testing.assert_array_equal(found.probabilities, [[0.25, 0.125, 0.625], [0.5, 0.3125, 0.1875]])
    assert (found.network, found.protocol) == ("net + other", "dense + ten-crop")
    assert dict(found.rejected) == {"x.jpg": "empty file", "set/1.jpg": "no prediction by other", "else.jpg": "no prediction by net"}  # fmt: skip
    assert predictions.fuse([three]) is three


def test_what_cannot_be_fused(three):
    renamed = replace(three, classes=(*three.classes[:2], Label("n9", "x")))
    for other, said in (
        (renamed, "other classes"),
        (replace(three, activation="sigmoid"), "other activation"),
        (replace(three, labels=((1,), (2,), ())), "two truths for set/0.jpg"),
        (replace(three, paths=("p", "q", "r")), "no picture that is in all"),
        (replace(three, paths=("set/0.jpg", "set/0.jpg", "r")), "twice"),
    ):
        with pytest.raises(UsageError, match=said):
            predictions.fuse([three, other])


def test_submission_by_hand(tmp_path):
    said = replace(
        made([[0.1, 0.2, 0.3, 0.1, 0.25, 0.05], [0.2, 0.2, 0.2, 0.2, 0.1, 0.1]], [(), ()]),
        paths=("z/val_2.JPEG", "a/val_3.JPEG"), rejected=(("b/val_1.JPEG", "broken"),),
    )  # fmt: skip
    assert (
        predictions.submission(said) == "0 0 0 0 0\n3 5 2 1 4\n1 2 3 4 5\n"
    )  # by file name; ties: lower first
    listing = tmp_path / "map_clsloc.txt"
    listing.write_text("".join(f"n{i} {100 - i} name_{i}\n" for i in reversed(range(6))))
    numbers = predictions.read_numbers(listing, CLASSES)
    assert numbers == (100, 99, 98, 97, 96, 95)
    assert predictions.submission(said, numbers).splitlines()[1] == "98 96 99 100 97"
    listing.write_text("n2\nn0\n\nn1\n")
    assert predictions.read_numbers(listing, CLASSES[:3]) == (2, 3, 1)
    with pytest.raises(UsageError, match="none for n3"):
        predictions.read_numbers(listing, CLASSES[:4])
    with pytest.raises(UsageError, match="at least five"):
        predictions.submission(made([[0.5, 0.5]], [()]))


# --- figures ---------------------------------------------------------------------------------------------------


def test_figures_of_one_label_by_hand():
    unsure = [0.3125, 0.4375, 0.125, 0.0625, 0.0625, 0]
    rows = [[0.625, 0.125, 0.125, 0.0625, 0.0625, 0], unsure, unsure, [0.1875] * 5 + [0.0625]]
    said = made(rows, [(0,), (0,), (1,), (5,)], rejected=(("x", "y"),))
    found = scores.figures(said)
    assert (found["pictures"], found["rejected"], found["classes_known"]) == (4, 1, 6)
    assert found["top1"]["percent"] == 50
    assert found["top1"]["interval"] == [round(100 * v, 2) for v in metrics.wilson_interval(2, 4)]
    assert found["top5"]["percent"] == 75
    assert found["mean_per_class"]["percent"] == 50  # (1/2 + 1 + 0) / 3
    # Confidence 0.625: right; 0.4375: wrong and right; 0.1875: wrong.
    error = 0.25 * 0.375 + 0.5 * 0.0625 + 0.25 * 0.1875
    assert found["calibration_error"]["percent"] == pytest.approx(100 * error, abs=0.006)
    filled = {one["to"]: (one["pictures"], one["confidence"], one["right"]) for one in found["calibration"] if one["pictures"]}  # fmt: skip
    assert filled == {0.6667: (1, 62.5, 100), 0.4667: (2, 43.75, 50), 0.2: (1, 18.75, 0)}
    assert [(c["name"], c["pictures"], c["right"], c["percent"], c["precision"]) for c in found["classes"]] == [
        ("class 0", 2, 1, 50, 50), ("class 1", 1, 1, 100, 50), ("class 5", 1, 0, 0, None),
    ]  # fmt: skip
    assert [(p["true"], p["predicted"], p["pictures"], p["percent"]) for p in found["confused"]] == [
        ("class 0", "class 1", 1, 50), ("class 5", "class 0", 1, 100),
    ]  # fmt: skip
    assert sorted(found["confusion"]) == [[0, 0, 1], [0, 1, 1], [1, 1, 1], [5, 0, 1]]
    json.dumps(found, allow_nan=False)


def test_intervals_hold_the_figure_and_shrink():
    rng = np.random.default_rng(5)
    rows = rng.dirichlet(np.full(6, 0.6), 400).astype(np.float32)
    labels = [(int(rng.choice(6, p=row / row.sum())),) for row in rows.astype(np.float64)]
    widths = []
    for count in (100, 400):
        found = scores.figures(made(rows[:count], labels[:count]))
        for name in ("top1", "top5", "mean_per_class"):
            low, high = found[name]["interval"]
            assert low < found[name]["percent"] < high
        low, high = found["brier"]["interval"]
        assert low < found["brier"]["score"] < high
        widths.append(high - low)
    assert widths[1] < 0.7 * widths[0]


def test_figures_of_several_labels_by_hand():
    said = made(
        [[0.9, 0.1, 0.4], [0.8, 0.7, 0.3], [0.7, 0.9, 0.2], [0.6, 0.2, 0.1]], [(0,), (1,), (0, 1), (1,)], activation="sigmoid",
        difficult=((), (), (0,), ()),
    )  # fmt: skip
    found = scores.figures(said)
    by_name = {one["name"]: one for one in found["classes"]}
    assert by_name.keys() == {"class 0", "class 1"}  # nothing is of class 2
    # Class 0 without the picture where it is difficult: 0.9 right, 0.8, 0.6 wrong.
    assert (by_name["class 0"]["percent"], by_name["class 0"]["pictures"]) == (100, 1)
    # Class 1 in the order 0.9 right, 0.7 right, 0.2 right, 0.1 wrong.
    assert by_name["class 1"]["percent"] == 100
    assert found["mean_average_precision"]["percent"] == 100
    worse = replace(
        said, probabilities=said.probabilities[:, [0, 2, 1]]
    )  # now class 1 is scored 0.4 0.3 0.2 0.1
    second = {one["name"]: one for one in scores.figures(worse)["classes"]}["class 1"]
    # wrong, right, right, right: precisions 1/2, 2/3, 3/4, so 3/4 at every recall.
    assert (second["percent"], second["percent_11"]) == (75, 75)


def test_nothing_labelled_says_why():
    with pytest.raises(UsageError, match="no picture with a label, 1 rejected; the first: empty"):
        scores.figures(made([[0.5, 0.5]], [()], rejected=(("a", "empty"),)))


# --- metrics ---------------------------------------------------------------------------------------------------


def test_ranks_are_places_in_top_k():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 4, (200, 7)).astype(float)
    values[::9, 3] = np.nan
    truth = rng.integers(0, 7, 200)
    order = metrics.top_k(values, 7)
    slow = [row.tolist().index(t) + 1 for row, t in zip(order, truth, strict=True)]
    assert metrics.ranks(values, truth).tolist() == slow


def test_confusion_and_accuracy_against_loops():
    rng = np.random.default_rng(2)
    predicted, truth = rng.integers(0, 5, 300), rng.integers(0, 4, 300)
    table = metrics.confusion_matrix(predicted, truth, 5)
    assert table.tolist() == [[sum((truth == t) & (predicted == p)) for p in range(5)] for t in range(5)]
    share = metrics.per_class_accuracy(predicted, truth, 5)
    np.testing.assert_allclose(share[:4], [(predicted[truth == t] == t).mean() for t in range(4)])
    assert np.isnan(share[4])


def test_calibration_by_hand():
    confidence = [0.0, 0.25, 0.2501, 0.5, 1.0]  # edges belong to the bin below, 0 to the first
    table = metrics.calibration_bins(confidence, [False, True, False, True, True], bins=4)
    np.testing.assert_allclose(table, [[2, 0.125, 0.5], [2, 0.37505, 0.5], [0, np.nan, np.nan], [1, 1, 1]])
    error = metrics.expected_calibration_error(confidence, [False, True, False, True, True], bins=4)
    assert error == pytest.approx(2 / 5 * 0.375 + 2 / 5 * 0.12495)
    assert np.isnan(metrics.expected_calibration_error([], []))


def test_brier_against_its_formula():
    rows = np.random.default_rng(3).dirichlet(np.ones(4), 30)
    truth = np.arange(30) % 4
    slow = [sum((p - (c == t)) ** 2 for c, p in enumerate(row)) for row, t in zip(rows, truth, strict=True)]
    np.testing.assert_allclose(metrics.brier_scores(rows, truth), slow)


def test_average_precision_by_hand():
    # Right, wrong, right, wrong, wrong, right: precisions at hits 1, 2/3, 1/2.
    values, truth = [6, 5, 4, 3, 2, 1], [True, False, True, False, False, True]
    assert metrics.average_precision(values, truth) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    # Recalls 0 … 0.3 see 1, 0.4 … 0.6 see 2/3, 0.7 … 1 see 1/2.
    assert metrics.average_precision(values, truth, points=11) == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 / 2) / 11)  # fmt: skip
    # A later, higher precision counts for the recalls below it.
    assert metrics.average_precision([3, 2, 1], [False, True, True]) == pytest.approx(2 / 3)
    assert np.isnan(metrics.average_precision([1, 2], [False, False]))
    with pytest.raises(UsageError, match="≥ 2"):
        metrics.average_precision([1], [True], points=1)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_against_the_devkits_loops(seed):
    rng = np.random.default_rng(seed)
    values, truth = rng.permutation(40), rng.random(40) < 0.3
    order = truth[np.argsort(-values)]
    hits = np.cumsum(order)
    recall, precision = hits / hits[-1], hits / np.arange(1, 41)
    eleven = sum(max([p for r, p in zip(recall, precision, strict=True) if r >= t / 10 - 1e-12], default=0) for t in range(11)) / 11  # fmt: skip
    assert metrics.average_precision(values, truth, points=11) == pytest.approx(eleven)
    area, before = 0.0, 0.0
    for i in range(40):
        area += (recall[i] - before) * max(precision[i:])
        before = recall[i]
    assert metrics.average_precision(values, truth) == pytest.approx(area)
