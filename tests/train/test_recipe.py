"""Recipes: how files extend each other, what the published ones say, and that all can be built."""

import pytest

import camlucida as cl
from camlucida.images.augment import Augmentation
from camlucida.networks import catalogue
from camlucida.train import recipe
from camlucida.train.recipe import Recipe

NETWORKS = {
    "alexnet", "alexnet-gap", "alexnet-star-gap", "zfnet", "zfnet-b", "nin", "googlenet", "googlenet-gap", "googlenet-gmp",
    "vgg-a", "vgg-a-lrn", "vgg-b", "vgg-shallow-b", "vgg-d-gap", *(f"vgg-{n}-{s}" for n in "cde" for s in ("256", "384", "jitter")),
}  # fmt: skip
PUBLISHED = sorted(NETWORKS)


def test_one_recipe_for_each_published_network_and_its_twin():
    assert set(recipe.names()) == {"embedded"} | NETWORKS | {f"{name}-twin" for name in NETWORKS}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe_and_twin(name):
    own, twin = recipe.load(name), recipe.load(f"{name}-twin")
    assert (own.name, twin.name) == (name, f"{name}-twin")
    assert "paper, " in own.about  # table or section
    assert (own.scale, own.std, own.augmentation.flip) == (255.0, (1.0, 1.0, 1.0), 0.5)
    assert (own.momentum, own.nesterov, own.label_smoothing, own.warmup) == (0.9, False, 0.0, 0.0)
    assert own.card_crop == own.size == {True: 227}.get(name.startswith("alexnet"), 224)
    assert (twin.size, twin.card_crop, twin.batch) == (128, 128, 64)
    assert twin.arguments == {**own.arguments, "width": 0.25, "size": 128}
    assert (twin.network, twin.any_size, twin.subtract, twin.renormalise) == (own.network, own.any_size, own.subtract, own.renormalise)  # fmt: skip
    scales = {256: 146, 384: 219, 512: 293}
    for one, other in zip(own.augmentation.scale, twin.augmentation.scale, strict=True):
        assert abs(other - scales[one]) <= 1  # × 128 / 224
    if twin.start:  # from the twin of what the published network starts from
        assert twin.start == own.start.replace("/network", "-twin/network")
    built = catalogue.build(twin.network, {**twin.arguments, "num_classes": 3})
    assert sum(p.numel() for p in built.parameters()) > 0
    assert getattr(built, "preprocessing").any_size == twin.any_size  # noqa: B009  what the network says of itself


@pytest.mark.parametrize(
    ("name", "scale", "rate", "start"),
    [
        ("vgg-a", (256, 256), 0.01, ""),
        ("vgg-e-256", (256, 256), 0.01, "vgg-a"),
        ("vgg-e-384", (384, 384), 0.001, "vgg-e-256"),
        ("vgg-e-jitter", (256, 512), 0.001, "vgg-e-384"),
    ],
)
def test_training_scales_follow_each_other(name, scale, rate, start):
    found = recipe.load(name)
    assert (found.augmentation.scale, found.learning_rate) == (scale, rate)
    assert found.start == (f"runs/{start}/network.safetensors" if start else "")
    assert found.card_size == sum(scale) // 2  # Q = S, or the middle of the jitter (section 16)
    assert (found.schedule, found.drops, found.drop_factor, found.epochs, found.batch) == ("plateau", 3, 0.1, 74, 256)  # fmt: skip
    assert (found.weight_decay, found.decay_norms, found.augmentation.pca) == (5e-4, True, 0.1)


def test_released_fine_tuning_drops_each_40_000_iterations():
    found = recipe.load("googlenet-gap")
    steps = [round(at * 1_281_167 / found.batch, -1) for at in found.drop_at]
    assert steps == pytest.approx([40_000, 80_000, 120_000], abs=20)
    assert found.epochs * 1_281_167 / found.batch == pytest.approx(160_000, rel=0.002)
    assert (found.learning_rate, found.bias_rate, found.decay_norms) == (0.001, 2.0, False)


def test_embedded_is_untouched_by_the_fields_it_does_not_name():
    found = recipe.load("embedded")
    assert (found.task, found.initialisation, found.start, found.head_rate, found.bias_rate) == ("softmax", "own", "", 1, 1)  # fmt: skip
    assert (found.renormalise, found.subtract, found.scale, found.accumulate) == (0, "mean", 1.0, 1)
    assert (found.augmentation.scale, found.augmentation.pca_values) == ((), ())
    shape = found.preprocessing()
    assert (shape.size, shape.crop, shape.scale, shape.mean, shape.std) == (80, None, 1.0, found.mean, found.std)  # fmt: skip


def test_extends_merges_tables_and_the_later_wins(tmp_path):
    (tmp_path / "a.toml").write_text("epochs = 5\nbatch = 7\n[augmentation]\nscale = [64, 64]\nflip = 0.1\n")
    (tmp_path / "b.toml").write_text("batch = 8\n[arguments]\nwidth = 0.5\n")
    (tmp_path / "c.toml").write_text('extends = ["a.toml", "b.toml"]\nname = "c"\n[augmentation]\nflip = 0.2\n[arguments]\ndropout = 0.1\n')  # fmt: skip
    (tmp_path / "d.toml").write_text('extends = ["vgg-d-384-twin", "c.toml"]\n')
    c = recipe.load(tmp_path / "c.toml", {"augmentation": {"pca": 0.3}})
    assert (c.name, c.epochs, c.batch, c.arguments) == ("c", 5, 8, {"width": 0.5, "dropout": 0.1})
    assert c.augmentation == Augmentation(scale=(64, 64), flip=0.2, pca=0.3)
    with pytest.raises(cl.UsageError, match="augmentation.scale"):  # crops of 128 out of 64
        recipe.load(tmp_path / "d.toml")
    (tmp_path / "e.toml").write_text('extends = ["vgg-d-384-twin", "b.toml"]\nstart = "mine.pth"\n')
    e = recipe.load(tmp_path / "e.toml")
    assert (e.network, e.batch, e.start, e.arguments) == ("vgg-d", 8, "mine.pth", {"width": 0.5, "size": 128})


def test_files_that_extend_each_other_are_refused(tmp_path):
    (tmp_path / "a.toml").write_text('extends = ["b.toml"]\n')
    (tmp_path / "b.toml").write_text('extends = ["a.toml"]\n')
    with pytest.raises(cl.UsageError, match="8 files deep"):
        recipe.load(tmp_path / "a.toml")
    (tmp_path / "mine.toml").write_text('extends = "vgg-d-gap-twin"\nbatch = 3\n')  # one alone needs no list
    (tmp_path / "its.toml").write_text('extends = ["mine.toml"]\nseed = 4\n')  # one's own over one's own
    its = recipe.load(tmp_path / "its.toml")
    assert (its.network, its.batch, its.seed, its.size) == ("vgg-d-gap", 3, 4, 128)
    (tmp_path / "c.toml").write_text('extends = ["vgg-q"]\n')
    with pytest.raises(cl.UsageError, match="'vgg-q' is not known"):
        recipe.load(tmp_path / "c.toml")
    with pytest.raises(cl.UsageError, match="is not known"):
        recipe.load("_paper")  # a part is no recipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "softmaks"}, "did you mean 'softmax'"),
        ({"initialisation": "xavier"}, "recipe: initialisation"),
        ({"schedule": "plateaus"}, "did you mean 'plateau'"),
        ({"drop_at": [3]}, "recipe: drop_at"),
        ({"schedule": "steps"}, "recipe: drop_at"),
        ({"schedule": "steps", "drop_at": [5, 3]}, "rising order"),
        ({"accumulate": 0}, "recipe: accumulate"),
        ({"seed": -1}, "recipe: seed"),
        ({"learning_rate": -0.1}, "recipe: learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate; got 'fast'; allowed: a finite number"),
        ({"learning_rate": float("inf")}, "recipe: learning_rate"),
        ({"learning_rate": True}, "recipe: learning_rate"),
        ({"batch": 2.5}, "batch; got 2.5; allowed: a whole number"),
        ({"size": "64"}, "recipe: size"),
        ({"channels_last": 1}, "channels_last; got 1; allowed: true | false"),
        ({"name": 7}, "name; got 7; allowed: text"),
        ({"arguments": 7}, "arguments; got 7; allowed: a table"),
        ({"mean": [1.0, "x", 2.0]}, "a list of any number, each a finite number"),
        ({"mean": [1.0, 2.0]}, "3 numbers each for RGB"),
        ({"momentum": -1.0}, "recipe: momentum"),
        ({"warmup": 1.0}, "recipe: warmup"),
        ({"average": 1.0}, "recipe: average"),
        ({"scale": 0.0}, "recipe: scale"),
        ({"augmentation": {"area": [0.0, 1.0]}}, "augmentation: area"),
        ({"augmentation": {"area": [0.5]}}, "a list of 2"),
        ({"augmentation": {"ratio": [2.0, 1.0]}}, "augmentation: ratio"),
        ({"augmentation": {"flip": 1.5}}, "augmentation: flip"),
        ({"augmentation": {"pca": "x"}}, "augmentation.pca"),
        ({"card_crop": 90}, "card_crop"),
        ({"start_layers": ["features"]}, "start_layers"),
        ({"augmentation": {"scale": [80]}}, "scale"),
        ({"augmentation": {"crops": "ten"}}, "crops"),
        ({"augmentation": {"pca_values": [1, 1, 1]}}, "pca_vectors"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, words):
    with pytest.raises(cl.UsageError, match=words):
        recipe.load("embedded", {"schedule": "one-cycle", "rates": [], **changes})


def test_preprocessing_and_activation_of_the_card():
    shape = recipe.load("vgg-d-384").preprocessing()
    assert (shape.size, shape.crop, shape.any_size, shape.mean, shape.scale) == (384, 224, False, (123, 117, 104), 255)  # fmt: skip
    tasks = ("softmax", "sigmoid", "regression")
    assert [Recipe(task=task).activation for task in tasks] == ["softmax", "sigmoid", "none"]
