"""Maps of other methods: what they give on networks that are linear in their input, and beside CID maps on images with boxes."""

import pytest
import torch
from torch import nn

from channelscope import data
from channelscope.discarding import faithfulness as room
from channelscope.discarding.cid import CIDOptions
from channelscope.discarding.faithfulness import compare_maps
from channelscope.errors import DataError, InputError, SiteError
from channelscope.network.module_state import weights_hash

pytest.importorskip("captum")
pytest.importorskip("zennit")


def network():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ]
    model = nn.Sequential(*layers)
    model[1].running_mean.normal_()
    return model.eval()


IMAGES, TARGET = torch.rand(3, 3, 8, 8), torch.tensor([0, 3, 1])


def test_every_method_gives_a_finite_map_and_leaves_the_network_alone():
    model = network()
    before, hooks = weights_hash(model), sum(len(part._forward_hooks) for part in model.modules())
    for name, method in room.attributions(model, "0").items():
        found = method(IMAGES, TARGET)
        assert found.shape == (3, 8, 8), name
        assert found.isfinite().all(), name
        assert not found.requires_grad
    assert weights_hash(model) == before
    assert sum(len(part._forward_hooks) for part in model.modules()) == hooks
    assert model[2].inplace


def test_the_gradient_is_the_gradient():
    model = network()
    images = IMAGES.clone().requires_grad_()
    logits = model(images).gather(1, TARGET[:, None]).sum()
    (expected,) = torch.autograd.grad(logits, images)
    torch.testing.assert_close(room.attributions(model, "0")["gradient"](IMAGES, TARGET), expected.abs().amax(1))


def test_gradcam_by_hand():
    """ReLU of the channel-weighted map; weights are the mean gradients."""
    model = network()
    maps = model[:3](IMAGES).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model[3:](maps).gather(1, TARGET[:, None]).sum(), maps)
    expected = (slope.mean((2, 3), keepdim=True) * maps).sum(1).relu().detach()
    torch.testing.assert_close(room.gradcam(model, "2", IMAGES, TARGET), expected)


class Residual(nn.Module):
    """Two residual blocks without biases; weights and images are positive, so that every layer conserves relevance."""

    def __init__(self, add):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        self.head, self.add = nn.Linear(4, 4, bias=False), add
        for weight in self.parameters():
            weight.data = weight.data.abs()

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = self.add(self.one(x), x)
        x = self.add(self.two(x), x)
        return self.head(x.mean((2, 3)))


def augmented(a, b):
    a += b
    return a


@pytest.mark.parametrize("add", [lambda a, b: a + b, torch.add, augmented], ids=["+", "add", "+="])
def test_relevance_is_conserved_through_residual_blocks(add):
    """The class starts with a relevance of 1; handed on whole to both sides of two sums it was 4."""
    found = room.attributions(Residual(add).eval(), "stem")["lrp"](IMAGES, TARGET)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(3), rtol=1e-3, atol=1e-3)


def test_the_sides_of_a_sum_have_shares_of_its_relevance():
    a, b = torch.tensor([3.0, -1.0], requires_grad=True), torch.tensor([1.0, 3.0], requires_grad=True)
    room._Share.apply(a, b).backward(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(a.grad, torch.tensor([0.75, -1.0]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(b.grad, torch.tensor([0.25, 3.0]), rtol=1e-5, atol=1e-5)


def test_what_is_missing_or_no_module_is_said(monkeypatch):
    with pytest.raises(SiteError, match="'relu_3' is a step"):
        room.attributions(network(), "relu_3")
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"need captum and zennit: pip install 'channelscope\[attribution\]'"):
        room.attributions(network(), "0")


def test_integrated_gradients_hold_one_point_of_the_path_in_memory():
    """The network never sees more images at once than it was given."""
    model, seen = network(), []
    model.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    room.integrated_gradients(model, IMAGES, TARGET)
    assert max(seen) == len(IMAGES)
    assert len(seen) >= room.STEPS


METHODS = ["gradient", "integrated_gradients", "gradcam", "lrp", "random", "center"]


@pytest.fixture
def boxed_digits(monkeypatch):
    """Digits, each with a box around the middle."""
    found = data.read_images(data.ImageSource("digits", images=60))
    monkeypatch.setattr(data.Split, "column", lambda self, name: [[(2.0, 2.0, 6.0, 6.0)] for _ in range(len(self))])
    return found


def small_classifier():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    ]
    return nn.Sequential(*layers).eval()


def test_tables_of_all_methods(boxed_digits):
    comparison = compare_maps(
        small_classifier(),
        boxed_digits.test.take(3),
        boxed_digits.calibration.take(2),
        boxed_digits.calibration,
        ["2", "0"],
        CIDOptions(side=4),
    )
    assert comparison.layers == ("0", "2")
    assert list(comparison.tables) == ["descriptive_accuracy", "localization"]
    localization = comparison.tables["localization"]
    assert localization.method.tolist() == ["cid 0", "cid 2", *METHODS]
    assert localization.converged.notna().tolist() == [True, True] + [False] * 6
    assert (localization.n == 3).all()
    assert (localization.tuned == 2).all()
    assert localization.less_cid[1:].to_numpy() == pytest.approx((localization.iou - localization.iou[0])[1:].to_numpy())
    curves = comparison.tables["descriptive_accuracy"]
    assert curves.baseline.tolist() == ["zero", "blur"] * 8
    assert curves.less_cid.isna().tolist() == [True, True] + [False] * 14


def test_an_image_without_a_box_is_refused(boxed_digits, monkeypatch):
    monkeypatch.setattr(data.Split, "column", lambda self, name: [[(2.0, 2.0, 2.0, 6.0)]] + [[(2.0, 2.0, 6.0, 6.0)]] * (len(self) - 1))
    with pytest.raises(DataError, match="1 of 2 calibration images have no box inside the image"):
        compare_maps(small_classifier(), boxed_digits.test.take(3), boxed_digits.calibration.take(2), boxed_digits.calibration, ["2"])
