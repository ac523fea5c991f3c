"""Fine-grained pictures whose answer is known: small objects of two kinds, red and blue, each bright green or not, on a large
background whose green misleads; and a network that sees colours alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

CLASSES = ("001.red_dull", "002.red_bright", "003.blue_dull", "004.blue_bright")
HEIGHT, WIDTH, SIDE = 96, 120, 24  # the object covers 5 % of a picture


class Colours(nn.Module):
    """Three channels, the mean red, green and blue of cells of 4 × 4 pixels; pooling; a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.AvgPool2d(4), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc(self.pool(self.features(pixels)).flatten(1))


def network() -> nn.Module:
    module = Colours()
    nn.init.constant_(module.fc.weight, 1.0)
    nn.init.zeros_(module.fc.bias)
    return module.eval()


def picture(label: int, rng: np.random.Generator) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A picture of a class, and its object's half-open box (x0, y0, x1, y1), on cells of 4."""
    pixels = np.zeros((HEIGHT, WIDTH, 3))
    pixels[..., 1] = rng.uniform(0, 255)
    y, x = (4 * int(rng.integers(0, (side - SIDE) // 4 + 1)) for side in (HEIGHT, WIDTH))
    pixels[y : y + SIDE, x : x + SIDE] = (255 * (label < 2), 255 * (label % 2), 255 * (label >= 2))
    return Image.fromarray(pixels.astype(np.uint8)), (x, y, x + SIDE, y + SIDE)


def cub(root: Path, train: int, test: int, seed: int = 0) -> Path:
    """Pictures in the layout of CUB-200-2011."""
    rng, lists = np.random.default_rng(seed), dict[str, list[str]]()
    lists["classes.txt"] = [f"{k} {name}" for k, name in enumerate(CLASSES, 1)]
    number = 0
    for k, name in enumerate(CLASSES):
        for i in range(train + test):
            number += 1
            image, (x0, y0, x1, y1) = picture(k, rng)
            file = root / "images" / name / f"{i:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
            for list_name, value in (
                ("images.txt", f"{name}/{i:02}.png"),
                ("image_class_labels.txt", k + 1),
                ("train_test_split.txt", int(i < train)),
                ("bounding_boxes.txt", f"{x0:.1f} {y0:.1f} {x1 - x0:.1f} {y1 - y0:.1f}"),
            ):
                lists.setdefault(list_name, []).append(f"{number} {value}")
    for list_name, rows in lists.items():
        (root / list_name).write_text("\n".join(rows) + "\n")
    return root
