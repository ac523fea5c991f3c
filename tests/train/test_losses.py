"""Losses and figures against slow formulas; and each head trained, with class maps that are complete."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import camlucida as cl
from camlucida.networks.cards import Card
from camlucida.networks.heads import PooledLinear
from camlucida.train import losses, optimise
from camlucida.train.initialise import initialise
from camlucida.train.recipe import Recipe

LOGITS = [[1.5, -0.5, 0.25], [-2.0, 3.0, 0.5]]


def slow(task, logits, truth, smoothing=0.0):
    total = 0.0
    for row, goal in zip(logits, truth, strict=True):
        if task == "softmax":
            log_sum = math.log(sum(math.exp(v) for v in row))
            shares = [(1 - smoothing) * g + smoothing / len(row) for g in goal]
            total += sum(s * (log_sum - v) for s, v in zip(shares, row, strict=True))
        elif task == "sigmoid":
            terms = [-math.log(1 / (1 + math.exp(-v if g else v))) for v, g in zip(row, goal, strict=True)]
            total += sum(terms) / len(terms)
        else:
            total += 0.5 * sum((v - g) ** 2 for v, g in zip(row, goal, strict=True))
    return total / len(logits)


@pytest.mark.parametrize(
    ("task", "truth"),
    [
        ("softmax", [[1, 0, 0], [0, 1, 0]]),
        ("softmax", [[0.7, 0.3, 0], [0, 0.5, 0.5]]),
        ("sigmoid", [[1, 0, 1], [0, 0, 0]]),
        ("regression", [[0.5, -1.0, 2.0], [10.0, 3.0, 0.0]]),
    ],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_slow_formula(task, truth, smoothing):
    recipe = Recipe(task=task, label_smoothing=smoothing)
    found = losses.loss(torch.tensor(LOGITS), torch.tensor(truth), recipe)
    assert found.item() == pytest.approx(slow(task, LOGITS, truth, smoothing), rel=1e-5)
    if task == "softmax" and truth[0] == [1, 0, 0]:
        classes = losses.loss(torch.tensor(LOGITS), torch.tensor([0, 1]), recipe)
        assert classes.item() == pytest.approx(found.item(), rel=1e-6)


def test_auxiliary_losses_are_added_with_their_weight():
    recipe = Recipe(label_smoothing=0.0, auxiliary=0.3)
    truth, main = torch.tensor([0, 1]), torch.tensor(LOGITS)
    output = {"logits": main, "auxiliary": (main * 2, main - 1)}
    parts = [slow("softmax", x.tolist(), [[1, 0, 0], [0, 1, 0]]) for x in (main, main * 2, main - 1)]
    found = losses.loss(output, truth, recipe).item()
    assert found == pytest.approx(parts[0] + 0.3 * (parts[1] + parts[2]), rel=1e-5)
    assert losses.loss({"logits": main}, truth, recipe).item() == pytest.approx(parts[0], rel=1e-5)


def test_truth_of_another_shape_is_refused():
    for task, truth in (("sigmoid", torch.zeros(2)), ("regression", torch.zeros(2, 1)), ("softmax", torch.zeros(3, dtype=torch.int64))):  # fmt: skip
        with pytest.raises(cl.UsageError, match=f"truth of task {task}"):
            losses.loss(torch.tensor(LOGITS), truth, Recipe(task=task))


def test_figures_by_hand():
    logits = torch.tensor([[5.0, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [0, 9, 0, 0, 0, 0]])
    sums = losses.correct(logits, torch.tensor([0, 0, 2]), Recipe())
    assert sums == {"pictures": 3, "top1": 1, "top5": 2}  # class 0 is last of six; ties go to the lower index
    assert losses.figures(sums) == {"top1": 33.33, "top5": 66.67}
    soft = torch.eye(6)[[0, 0, 2]] * 0.6 + 0.4 / 6
    assert losses.correct(logits, soft, Recipe()) == sums

    several = losses.correct(torch.tensor([[1.0, -1, 2], [-1, -2, -3]]), torch.tensor([[1, 1, 0], [1, 0, 0]]), Recipe(task="sigmoid"))  # fmt: skip
    assert several["top1"] == 1  # the surest of the first is wrong, of the second right
    assert several["labels"] == pytest.approx(1 / 3 + 2 / 3)

    numbers = losses.correct(torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 0], [0, 4]]), Recipe(task="regression"))  # fmt: skip
    assert numbers == {"pictures": 2, "squared_error": 13}
    assert losses.figures(numbers) == {"squared_error": 6.5}
    assert losses.watched({"squared_error": 6.5}) < losses.watched({"squared_error": 6.0})
    assert losses.watched({"top1": 60.0, "top5": 90.0}) == 60.0


class Tiny(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU(), nn.Conv2d(12, 16, 3, 1, 1), nn.ReLU()
        )
        self.head = PooledLinear(16, outputs, units=None)

    def forward(self, pixels):
        return self.head(self.features(pixels))


def made_up(task):
    """16 × 20 pictures with red, green or blue spots: which is largest, which are there, how much there is of each."""
    rng = np.random.default_rng(0)
    pixels, share = torch.zeros(48, 3, 16, 20), torch.zeros(48, 3)
    for i in range(48):
        for channel in range(3):
            side = int(rng.integers(0, 3)) * 4
            y, x = int(rng.integers(0, 16 - side)), int(rng.integers(0, 20 - side))
            pixels[i, channel, y : y + side, x : x + side] = 1
            share[i, channel] = side**2 / 64
    share += torch.tensor([0.02, 0.01, 0.0])  # no ties
    if task == "softmax":
        return pixels, share.argmax(1)
    return pixels, (share > 0.1).float() if task == "sigmoid" else share


@pytest.mark.parametrize("task", ["softmax", "sigmoid", "regression"])
def test_each_head_trains_and_its_map_is_complete(task):
    torch.manual_seed(0)
    recipe = Recipe(
        task=task, label_smoothing=0.0, initialisation="he", learning_rate=0.1 if task != "sigmoid" else 0.4, nesterov=False, weight_decay=1e-4, bias_rate=2,
        schedule="steps", drop_at=(70,), epochs=80, warmup=0.1,
    )  # fmt: skip
    module, (pixels, truth) = Tiny(3), made_up(task)
    initialise(module, recipe)
    steps_by, schedule = optimise.optimiser(module, recipe), optimise.Schedule(recipe, 1)
    seen = []
    for step in range(recipe.epochs):
        for group in steps_by.param_groups:
            group["lr"] = schedule.rate(step) * group["factor"]
        loss = losses.loss(module(pixels), truth, recipe)
        steps_by.zero_grad()
        loss.backward()
        steps_by.step()
        seen.append(loss.item())
    assert seen[-1] < 0.5 * seen[0]

    net = cl.wrap(module.eval(), card=Card(activation=recipe.activation))
    maps = cl.CAM()(net, pixels[:4], cl.ClassTarget.all())
    outputs = net(pixels[:4])
    bias = module.head.classify.bias.detach()
    torch.testing.assert_close(maps.values.mean((2, 3)) + bias, outputs, atol=1e-5, rtol=1e-5)
    found = net.predict(pixels, top=3).probabilities
    expected = {"softmax": torch.softmax(net(pixels), 1), "sigmoid": torch.sigmoid(net(pixels)), "regression": net(pixels)}[task]  # fmt: skip
    torch.testing.assert_close(found, expected)
    sums = losses.correct(net(pixels), truth, recipe)
    figure = losses.figures(sums)
    if task == "regression":
        assert figure["squared_error"] < 0.3 * float((truth - truth.mean(0)).pow(2).sum(1).mean())
    else:
        assert figure["top1"] > 80
