"""Small networks, pictures and features for the tests of this folder."""

from __future__ import annotations

import numpy as np
from PIL import Image

import camlucida as cl
from camlucida.features import Block, Features
from camlucida.images.views import Preprocessing
from camlucida.networks.lucida import Lucida
from camlucida.values import Label
from small_networks import seeded

ARGUMENTS = {"num_classes": 4, "widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
SHAPE = Preprocessing(size=32, minimum=16, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25))


def network(seed: int = 0) -> cl.Network:
    """A residual network of 16 channels before its pooling."""
    module = seeded(Lucida, seed=seed, **ARGUMENTS)
    return cl.wrap(module, card=cl.Card(f"small{seed}", "lucida", ARGUMENTS, SHAPE))


def picture(seed: int, height: int = 40, width: int = 56) -> Image.Image:
    """Noise on a colour that the seed decides."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 96, (height, width, 3)) + rng.integers(0, 160, 3)
    return Image.fromarray(noise.astype(np.uint8))


def block(width: int, start: int = 0, **changed) -> Block:
    known = {"network": "n" * 64, "name": "net", "layer": "stages", "pixels": "p", "scales": (32,), "flips": False, "region": "picture"}  # fmt: skip
    return Block(**{**known, **changed}, start=start, stop=start + width)


def clouds(classes: int = 3, each: int = 12, width: int = 6, seed: int = 0, blocks=None) -> Features:
    """Positive features around a centre a class, of very unequal size."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 2, (classes, width))
    labels = np.repeat(np.arange(classes), each)
    values = (centres[labels] + rng.uniform(0, 1, (len(labels), width))) * rng.uniform(
        0.5, 3, (len(labels), 1)
    )
    return Features(
        values.astype(np.float32), tuple(f"{i}.png" for i in range(len(labels))), tuple((int(k),) for k in labels),
        tuple(Label(f"c{k}", f"class {k}") for k in range(classes)), blocks or (block(width),),
    )  # fmt: skip
