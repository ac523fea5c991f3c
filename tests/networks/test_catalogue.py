"""`load` and `wrap`: names, weights, devices, and what is refused."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import pytest
import torch
import torchvision
from safetensors.torch import save_file

import camlucida as cl
from camlucida.errors import NetworkError, UsageError
from camlucida.images.views import Preprocessing
from camlucida.networks import cards, catalogue
from camlucida.networks.cards import Card
from camlucida.values import Label
from small_networks import gap, pixels

OWN = "catalogue_modules:build"


@pytest.fixture
def packed(tmp_path):
    """A packed network of five labelled classes and the module it was made of."""
    module = gap()
    labels = tuple(Label(f"n{i}", f"thing {i}") for i in range(5))
    card = Card("small", OWN, {"num_classes": 5}, Preprocessing(size=20), labels, measured={"top-1": 0.5})
    file = tmp_path / "small.safetensors"
    return file, cards.pack(file, module.state_dict(), card), module


def test_a_packed_network_is_what_was_packed(packed):
    file, card, module = packed
    net = cl.load(str(file))
    assert net.card == card
    assert not net.module.training
    torch.testing.assert_close(net(pixels()), module(pixels()).detach(), rtol=0, atol=0)


def test_a_packed_network_built_anew(packed):
    file, card, _ = packed
    net = cl.load(str(file), weights=None)
    assert (net.card.labels, net.card.sha256, net.card.measured) == (card.labels, "", {})
    net = cl.load(str(file), weights=None, num_classes=3)
    assert net(pixels()).shape == (2, 3)
    assert net.card.labels == ()
    with pytest.raises(NetworkError, match=r"fixed by its weights; got \{'num_classes': 3\}"):
        cl.load(str(file), num_classes=3)


def test_other_weights_for_a_packed_network(packed, tmp_path):
    file, _, module = packed
    with torch.no_grad():
        module.fc.weight.mul_(2)
    torch.save(module.state_dict(), tmp_path / "other.pth")
    net = cl.load(str(file), weights=tmp_path / "other.pth")
    torch.testing.assert_close(net(pixels()), module(pixels()).detach(), rtol=0, atol=0)


def test_a_damaged_packed_network(packed):
    file, *_ = packed
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 0x80
    file.write_bytes(raw)
    with pytest.raises(NetworkError, match="damaged"):
        cl.load(str(file))


def test_a_packed_network_that_is_not_there(tmp_path):
    with pytest.raises(NetworkError, match=r"no packed network .*gone\.safetensors"):
        cl.load(str(tmp_path / "gone.safetensors"))


def test_ones_own_function():
    net = cl.load(OWN, num_classes=3)
    assert net(pixels()).shape == (2, 3)
    assert net.card == Card(name=OWN, architecture=OWN, arguments={"num_classes": 3})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("catalogue_modules:biuld", {}, "catalogue_modules has no 'biuld'"),
        ("no_such_module_anywhere:build", {}, "cannot import no_such_module_anywhere"),
        ("catalogue_modules:no_module", {}, "gave; got str; allowed: a torch.nn.Module"),
        (
            "catalogue_modules:no_module",
            {"num_classes": 3},
            r"does not take these arguments; got \{'num_classes': 3\}",
        ),
        ("catalogue_modules:NUMBER", {}, "3 is not a callable object"),
        (OWN, {"width": 0.5}, r"does not take these arguments; got \{'width': 0.5\}"),
    ],
)
def test_ones_own_function_that_does_not_work(name, options, message):
    with pytest.raises(NetworkError, match=message):
        cl.load(name, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lucidda", r"network 'lucidda' is not known; did you mean 'lucida'\?"),
        ("embeded", r"did you mean 'embedded'\?"),
        (
            "torchvision/resnet19",
            r"torchvision has no classifier 'resnet19'; did you mean 'resnet1\d+'\?|'resnet",
        ),
        ("qqq", "known: alexnet, .*embedded"),
    ],
)
def test_unknown_names_and_the_nearest_right_one(name, message):
    with pytest.raises(NetworkError, match=message):
        cl.load(name, weights=None)


def test_random_weights_only_when_they_are_asked_for():
    with pytest.raises(NetworkError, match="lucida has no published weights; give weights=None"):
        cl.load("lucida")
    net = cl.load("lucida", weights=None, num_classes=3, width=0.1)
    assert net(torch.zeros(1, 3, 64, 80)).shape == (1, 3)
    assert net.card.arguments == {"num_classes": 3, "width": 0.1}


# --- torchvision -------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_torchvision_weights_that_are_not_cached_are_not_fetched(cache):
    with pytest.raises(
        NetworkError, match=r"resnet18 are not in the cache \(.*resnet18-\w+\.pth\).*--download"
    ):
        cl.load("torchvision/resnet18")
    assert list(cache.iterdir()) == []


def test_cached_torchvision_weights_are_used(cache):
    module = torchvision.models.squeezenet1_1(weights=None)
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    torch.save(module.state_dict(), cache / url.rsplit("/", 1)[-1])
    net = cl.load("torchvision/squeezenet1_1")
    torch.testing.assert_close(
        net(pixels(1, 64, 64)), module.eval()(pixels(1, 64, 64)).detach(), rtol=0, atol=0
    )
    assert net.card.labels[:2] == (Label("0", "tench"), Label("1", "goldfish"))
    assert net.card.preprocessing == Preprocessing(size=256, crop=224, minimum=32)
    assert net.card.architecture == "torchvision/squeezenet1_1"
    with pytest.raises(NetworkError, match="with its published weights; got"):
        cl.load("torchvision/squeezenet1_1", num_classes=3)


def test_torchvision_with_random_weights_or_a_file(tmp_path):
    net = cl.load("torchvision/squeezenet1_1", weights=None, num_classes=3)
    assert net(pixels(1, 64, 64)).shape == (1, 3)
    assert net.card.labels == ()
    torch.save({f"module.{k}": v for k, v in net.module.state_dict().items()}, tmp_path / "net.pth")
    again = cl.load("torchvision/squeezenet1_1", weights=tmp_path / "net.pth", num_classes=3)
    torch.testing.assert_close(again(pixels(1, 64, 64)), net(pixels(1, 64, 64)), rtol=0, atol=0)
    assert cl.load("torchvision/swin_t", weights=None).card.preprocessing.crop is not None


def test_weights_that_do_not_fit(tmp_path):
    weights = gap().state_dict()
    weights["extra"] = torch.zeros(1)
    del weights["fc.bias"]
    weights["fc.weight"] = torch.zeros(7, 6)
    save_file(weights, tmp_path / "net.safetensors")
    expected = r"1 missing \(fc.bias\); 1 surplus \(extra\); 1 misshapen \(fc.weight \(7, 6\) for \(5, 6\)\)"
    with pytest.raises(NetworkError, match=expected):
        cl.load(OWN, weights=tmp_path / "net.safetensors")


@pytest.mark.parametrize("prefix", ["model.", "net.model.", "module.model.", "backbone."])
def test_first_words_of_names_are_taken_off_as_far_as_the_network_has_them_not(tmp_path, prefix):
    weights = gap().state_dict()
    torch.save({"state_dict": {prefix + n: t for n, t in weights.items()}}, tmp_path / "net.ckpt")
    net = cl.load(OWN, weights=tmp_path / "net.ckpt")
    torch.testing.assert_close(net(pixels()), gap()(pixels()).detach(), rtol=0, atol=0)
    assert net.card.sha256 == cards.digest(weights)


def test_first_words_that_the_network_has_itself_stay(tmp_path):
    inner = gap()
    own = torch.nn.ModuleDict({"module": inner})  # named as DataParallel names it
    found = catalogue._named_as(own.state_dict(), cards_of(tmp_path, own.state_dict()))
    assert found.keys() == own.state_dict().keys()


def cards_of(tmp_path, state):
    torch.save(state, tmp_path / "net.pth")
    return cards.read_state_dict(tmp_path / "net.pth")


def test_the_number_of_classes_is_read_off_the_weights(tmp_path):
    weights = gap(classes=9).state_dict()
    save_file(weights, tmp_path / "net.safetensors")
    net = cl.load(OWN, weights=tmp_path / "net.safetensors")
    assert net.card.arguments == {"num_classes": 9}
    torch.testing.assert_close(net(pixels()), gap(classes=9)(pixels()).detach(), rtol=0, atol=0)
    with pytest.raises(NetworkError, match="the weights have 9 classes, the network 5: --num-classes 9"):
        cl.load(OWN, weights=tmp_path / "net.safetensors", num_classes=5)
    with pytest.raises(NetworkError, match="the weights have 9 classes, the network 5"):
        cl.load("small_networks:gap", weights=tmp_path / "net.safetensors")  # takes no number of classes


def test_weights_of_another_network_and_with_a_surplus(tmp_path):
    torch.save({"x.a": torch.zeros(1), "y.b": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(NetworkError, match=r"2 surplus \(x.a, y.b\); no name fits"):
        cl.load(OWN, weights=tmp_path / "other.pth")
    torch.save({**gap().state_dict(), "loss.weight": torch.zeros(1)}, tmp_path / "surplus.pth")
    with pytest.raises(NetworkError, match=r"got 1 surplus \(loss.weight\); .*save the file again"):
        cl.load(OWN, weights=tmp_path / "surplus.pth")


def test_a_weights_file_where_a_network_is_asked_for(tmp_path):
    torch.save(gap().state_dict(), tmp_path / "mine.pth")
    with pytest.raises(
        NetworkError, match=r"weights need their architecture: --arch NAME --weights \S+mine.pth"
    ):
        cl.load(str(tmp_path / "mine.pth"))


def test_published_googlenet_is_rebuilt_with_its_own_normalisation(cache, tmp_path):
    """Its module changes the pixels by itself, which a packed file has to know."""
    module = torchvision.models.googlenet(weights=None, init_weights=False)
    url = torchvision.models.GoogLeNet_Weights.DEFAULT.url
    torch.save(module.state_dict(), cache / url.rsplit("/", 1)[-1])
    net = cl.load("torchvision/googlenet")
    assert net.module.transform_input
    cards.pack(tmp_path / "net.safetensors", net.module.state_dict(), net.card)
    again = cl.load(str(tmp_path / "net.safetensors"))
    torch.testing.assert_close(again(pixels(1, 64, 64)), net(pixels(1, 64, 64)), rtol=0, atol=0)


# --- devices and precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "dtype", "kept"),
    [
        ("32-true", torch.float32, "32-true"),
        ("64-true", torch.float64, "32-true"),
        ("bf16-true", torch.bfloat16, "32-true"),
        ("16-true", torch.float16, "32-true"),
        ("bf16-mixed", torch.float32, "bf16-mixed"),
    ],
)
def test_precision_words(precision, dtype, kept):
    net = cl.load(OWN, precision=precision)
    assert (net.module.fc.weight.dtype, net.precision) == (dtype, kept)
    found = net(pixels())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cl.load(OWN)(pixels()), rtol=0.05, atol=0.05)


def test_an_unknown_precision_is_refused_before_anything_is_built():
    with pytest.raises(NetworkError, match=r"precision; got 'bf16-tru'; did you mean 'bf16-true'\?"):
        cl.load("no_such_module_anywhere:build", precision="bf16-tru")


@pytest.mark.parametrize(
    ("device", "message"), [("gpu", "'gpu'; allowed: cpu | cuda"), ("cuda:99", "CUDA devices here")]
)
def test_devices_that_are_not_there(device, message):
    with pytest.raises(UsageError, match=message):
        cl.load(OWN, device=device)


def test_every_name_in_the_tables_can_be_built():
    for name in catalogue.ARCHITECTURES:
        assert name in catalogue.names()
        module = catalogue.build(name, {"num_classes": 3, "width": 0.1})
        assert sum(p.numel() for p in module.parameters()) > 0
