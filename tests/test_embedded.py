"""What the embedded network is said to be able to do, on the published validation pictures where they are at hand."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

import camlucida as cl
from camlucida import pipeline
from camlucida.images import datasets

DATA = os.environ.get("CAMLUCIDA_DATA", "")
ZIP = Path(DATA) / "tiny-imagenet-val.zip"


@pytest.mark.skipif(
    not ZIP.is_file(), reason="$CAMLUCIDA_DATA holds no tiny-imagenet-val.zip: see docs/data.md"
)
def test_it_classifies_and_localizes_a_sample_of_the_validation_pictures():
    net = cl.load("embedded")
    data = datasets.load([ZIP]).relabelled(net.card.labels)
    data = replace(data, examples=data.examples[::10])
    *_, measured = pipeline.measure(pipeline.plan(net, top=1, views="auto"), data)
    report = measured.report()
    assert report["pictures"] == 500
    # Whole set: see docs/embedded.md. The bounds are three standard deviations of 500 pictures below it.
    assert report["top1"]["percent"] > 46.5
    assert report["gt_known"]["percent"] > 54.5
