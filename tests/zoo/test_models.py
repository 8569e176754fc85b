"""Networks by name, by another library's name, and by path."""

import copy
import sys

import pytest
import torch
from torch import nn

from channelscope.data import torchvision_cpu
from channelscope.data.decoding import ResizeCrop
from channelscope.errors import InputError
from channelscope.network.module_state import weights_hash
from channelscope.zoo.models import InputSpec, ModelInfo, build, model_info, network_names

FILE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, num_classes=3, in_channels=3):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(in_channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).flatten(1))

class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 5)

    def forward(self, x):
        return self.fc(x.flatten(1))

def function(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))

def wrong():
    return "no network"

def failing(num_classes):
    raise ValueError("bad luck")

constant = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(FILE)
    return path


def test_the_names():
    assert {"resnet20", "resnet32", "resnet56", "resnet18", "resnet34", "resnet50"} <= set(network_names())
    assert {"vgg16_bn", "mobilenet_v2", "convnext_tiny", "alexnet", "squeezenet1_0", "squeezenet1_1"} <= set(network_names())


def test_a_network_is_seeded_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = build("resnet20"), build("resnet20"), build("resnet20", seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert weights_hash(one) == weights_hash(two) != weights_hash(other)
    assert not one.training


def test_the_card_says_what_a_network_is_and_is_copied_along():
    model = build("resnet20(width=4)", 7, 1, 8)
    assert model_info(model) == ModelInfo("resnet20(width=4)", 7, 1, InputSpec())
    assert model_info(copy.deepcopy(model)) == model_info(model)
    assert "card" not in model.state_dict()
    with pytest.raises(InputError, match=r"received a Linear without a card"):
        model_info(nn.Linear(1, 1))


def test_keyword_arguments_reach_the_constructor():
    assert build("resnet20(width=4)").conv1.out_channels == 4
    narrow = build("mobilenet_v2(width_mult=0.25, dropout=0.0)", 10)
    assert narrow.features[0][0].out_channels == 8
    assert narrow.classifier[0].p == 0


@pytest.mark.parametrize("name", ["resnet20(4)", "resnet20(width=", "resnet20(width=open('x'))", "resnet20(width=4) + 1)", "resnet20(*a)"])
def test_arguments_are_keywords_with_literal_values(name):
    with pytest.raises(InputError, match=r"expected NAME or NAME\(key=value, …\)|no network is called"):
        build(name)


@pytest.mark.parametrize("name", ["resnet20(depth=20)", "resnet20(colour=3)", "mobilenet_v2(num_classes=2)"])
def test_arguments_the_constructor_refuses_are_reported(name):
    with pytest.raises(InputError, match="cannot be made for 10 classes and 3 channels"):
        build(name)


@pytest.mark.parametrize("name", ["resnet21", "ResNet20", "", "file.py", "keras:vgg"])
def test_an_unknown_name_says_what_is_known(name):
    with pytest.raises(InputError, match=r"no network is called .* resnet20, .* timm:NAME, torchvision:NAME"):
        build(name)


def test_large_images_want_224_pixels_and_imagenets_numbers():
    intake = model_info(build("squeezenet1_1", 10, 3, 300)).intake
    assert intake.fit == ResizeCrop((224, 224), 0.875)
    assert not intake.enlarge
    assert intake.normalization[0] == (0.485, 0.456, 0.406)
    assert model_info(build("squeezenet1_1", 10, 1, 300)).intake.normalization is None
    assert model_info(build("squeezenet1_1", 10, 3, 64)).intake == InputSpec()


def test_timm_networks_come_with_their_own_numbers():
    model = build("timm:test_resnet", 7, 3)
    intake = model_info(model).intake
    assert intake.fit == ResizeCrop((160, 160), 0.95, "bilinear")
    assert intake.normalization == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert not intake.enlarge
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_timm_networks_take_gray_images_without_numbers_of_their_own():
    model = build("timm:test_resnet", 7, 1)
    assert model_info(model).intake.normalization is None
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


def test_a_transformer_needs_its_size():
    assert model_info(build("timm:test_vit")).intake.enlarge
    assert model_info(build("torchvision:vit_b_32(image_size=32)", 2)).intake.fit.size == (32, 32)


def test_an_unknown_timm_network_suggests_some():
    with pytest.raises(InputError, match=r"no network of timm is called efficientnet_lit; near matches: .*_lite1; there are 1,\d+ names$"):
        build("timm:efficientnet_lit")


def test_timm_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm is not installed; pip install 'channelscope\[timm\]'"):
        build("timm:resnet18")


def test_torchvision_networks_are_unmodified():
    model = build("torchvision:squeezenet1_0", 7, 3, 32)
    assert model.features[0].kernel_size == (7, 7)
    intake = model_info(model).intake
    assert intake.fit == ResizeCrop((224, 224), 224 / 256, "bilinear")
    assert intake.normalization == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(InputError, match=r"no classification network of torchvision is called squeezenet9; near matches: .*squeezenet1_0"):
        build("torchvision:squeezenet9")


def test_published_weights_of_torchvision_for_other_classes_leave_the_last_layer_as_it_was_drawn(tmp_path, monkeypatch):
    models = torchvision_cpu.models
    published = models.get_model_weights("squeezenet1_1")["DEFAULT"]
    stored = models.get_model("squeezenet1_1").state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(stored, tmp_path / "hub" / "checkpoints" / published.url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    whole = build("torchvision:squeezenet1_1(pretrained=True)", 1000).state_dict()
    assert all(torch.equal(whole[name], stored[name]) for name in stored)
    with pytest.warns(UserWarning, match="published weights are for 1,000 classes, the images have 3: the last layer's are random"):
        model = build("torchvision:squeezenet1_1(pretrained=True)", 3)
    found = model.state_dict()
    last = [name for name in stored if name.startswith("classifier")]
    assert all(torch.equal(found[name], stored[name]) for name in stored if name not in last)
    assert [len(found[name]) for name in last] == [3, 3]
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_published_weights_that_cannot_be_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    said = r"squeezenet1_1\(pretrained=True\)': its published weights cannot be read \(URLError: .*\); without a connection, give the"
    with pytest.raises(InputError, match=said):
        build("torchvision:squeezenet1_1(pretrained=True)", 3)


def test_a_class_of_a_file(file):
    model = build(f"{file}:Net", 7, 1)
    assert (model.conv.in_channels, model.conv.out_channels, model.fc.out_features) == (1, 4, 7)
    assert model_info(model).intake == InputSpec()


def test_a_class_of_a_file_with_arguments(file):
    model = build(f"{file}:Net(width=9, num_classes=2)", 7, 3)
    assert (model.conv.out_channels, model.fc.out_features) == (9, 2)


def test_a_constructor_without_classes_and_a_function_will_do(file):
    assert build(f"{file}:Fixed", 7).fc.out_features == 5
    assert build(f"{file}:function", 7)[1].out_features == 7


def test_a_relative_path_and_a_later_version_of_the_file(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert build("nets.py:Net").fc.out_features == 10
    file.write_text(FILE.replace("width=4", "width=11"))
    assert build("nets.py:Net").conv.out_channels == 11


def test_files_that_do_not_have_it_say_what_they_have(file):
    with pytest.raises(InputError, match=r"nets\.py has no class Other; its networks are: Net, Fixed"):
        build(f"{file}:Other")
    with pytest.raises(InputError, match="has no class constant"):
        build(f"{file}:constant")
    with pytest.raises(InputError, match=r"none\.py: expected a Python file with the class Net, found nothing there"):
        build(f"{file.parent / 'none.py'}:Net")


def test_constructors_that_fail_are_reported(file):
    with pytest.raises(InputError, match=r"cannot be made .* \(bad luck, .*nets\.py:\d+\)"):
        build(f"{file}:failing")
    with pytest.raises(InputError, match=r"expected a torch.nn.Module, received str"):
        build(f"{file}:wrong")
    with pytest.raises(InputError, match="unexpected keyword"):
        build(f"{file}:Net(depth=3)")
