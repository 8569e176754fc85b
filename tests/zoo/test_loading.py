"""load: network and images brought together, or one clear reason why they do not fit."""

import pytest
import torch

from channelscope import zoo
from channelscope.data.images import IMAGENET
from channelscope.data.sources import ImageSource
from channelscope.errors import DataError, InputError, WeightsError
from channelscope.evaluation import evaluate
from channelscope.network import module_state
from image_files import write_folder, write_parquet

FILE = """
from torch import nn

class Eight(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, classes)

    def forward(self, x):
        return self.fc(x.flatten(1))

class Three(nn.Sequential):
    def __init__(self):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))

class Maps(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 1)

class Pair(Three):
    def forward(self, x):
        return super().forward(x), x

class Twice(Three):
    def forward(self, x):
        return super().forward(x), super().forward(x)
"""


STRICT = """
from torch import nn

class Strict(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 1)

    def forward(self, x):
        assert x.shape[-1] == 28
        return super().forward(x).mean((2, 3))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(FILE)
    return path


def folder(path, size, classes=2, gray=False):
    write_folder(path, {f"class{k}": 3 for k in range(classes)}, gray, size)
    return f"folder:{path}"


def logits(model, images):
    with torch.no_grad():
        return torch.cat([model(x) for x, _, _ in images.test])


@pytest.mark.parametrize("name", ["resnet20(width=4)", "resnet18", "mobilenet_v2(width_mult=0.25)", "squeezenet1_1", "timm:test_resnet"])
def test_the_digits_go_through_every_family(name):
    model, images = zoo.load(name, "digits")
    assert not model.training
    x, y, index = next(iter(images.calibration))
    with torch.no_grad():
        assert model(x).shape == (128, 10)
    assert y.dtype == index.dtype == torch.int64
    assert zoo.model_info(model).channels == 1


def test_without_weights_the_initialization_is_seeded():
    one, two, other = (zoo.load("resnet20(width=4)", "digits", seed=seed)[0] for seed in (0, 0, 1))
    assert module_state.weights_hash(one) == module_state.weights_hash(two) != module_state.weights_hash(other)


def test_weights_come_from_a_file(tmp_path):
    other = zoo.build("resnet20(width=4)", 10, 1, 8, seed=9)
    zoo.save_weights(other.state_dict(), tmp_path / "w.safetensors")
    model, _ = zoo.load("resnet20(width=4)", "digits", tmp_path / "w.safetensors")
    assert module_state.weights_hash(model) == module_state.weights_hash(other)


def test_weights_of_another_network_are_refused(tmp_path):
    zoo.save_weights(zoo.build("resnet20(width=4)", 100).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"of another shape: conv1\.weight .*, fc\.weight \(network \(10, 16\), file \(100, 16\)\)"):
        zoo.load("resnet20(width=4)", "digits", tmp_path / "w.safetensors")


def test_a_source_can_be_an_object():
    source = ImageSource("digits", batch_size=32, images=64, seed=3)
    _, images = zoo.load("resnet20(width=4)", source)
    assert images.source is source
    assert [len(y) for _, y, _ in images.calibration] == [32, 32]


def test_large_images_are_fitted_to_the_networks_input(tmp_path):
    data = folder(tmp_path / "images", (300, 240))
    model, images = zoo.load("squeezenet1_1", data)
    assert images.image_shape == (3, 224, 224)
    assert images.normalization == IMAGENET
    assert images.calibration.store.fit.crop == 0.875
    assert logits(model, images).shape == (3, 2)


def test_timms_numbers_are_used_unless_others_are_given(tmp_path):
    data = folder(tmp_path / "images", (200, 170))
    _, images = zoo.load("timm:test_resnet", data)
    assert images.image_shape == (3, 160, 160)
    assert images.normalization == ((0.5,) * 3, (0.5,) * 3)
    _, images = zoo.load("timm:test_resnet", ImageSource(data, mean=(0.1, 0.2, 0.3), std=(0.4,)))
    assert images.normalization == ((0.1, 0.2, 0.3), (0.4,) * 3)
    _, images = zoo.load("timm:test_resnet", ImageSource(data, size=96))
    assert images.image_shape == (3, 96, 96)


def test_smaller_images_are_not_blown_up_unless_the_network_needs_it(tmp_path):
    data = folder(tmp_path / "images", (40, 40))
    assert zoo.load("timm:test_resnet", data)[1].image_shape == (3, 40, 40)
    model, images = zoo.load("timm:test_vit", data)
    assert images.image_shape == (3, 160, 160)
    assert logits(model, images).shape == (3, 2)


@pytest.mark.parametrize("name", ["timm:test_vit(img_size=32)", "timm:test_vit(img_size=(32,32))"])
def test_images_have_the_size_for_which_a_network_is_made(tmp_path, name):
    for size in (100, 20):
        model, images = zoo.load(name, folder(tmp_path / str(size), (size, size)))
        assert images.image_shape == (3, 32, 32)
        assert logits(model, images).shape == (3, 2)


def test_a_size_decides_the_stem(tmp_path):
    data = folder(tmp_path / "images", (100, 100))
    model, images = zoo.load("squeezenet1_1", ImageSource(data, size=32))
    assert images.image_shape == (3, 32, 32)
    assert model.features[0].stride == (1, 1)
    model, _ = zoo.load("squeezenet1_1", data)
    assert model.features[0].stride == (2, 2)


def test_a_network_of_a_file_gets_the_datas_classes(tmp_path, file):
    model, images = zoo.load(f"{file}:Eight", folder(tmp_path / "images", (8, 8), classes=5))
    assert images.classes == 5
    assert model.fc.out_features == 5


def test_images_of_the_wrong_size_say_so(tmp_path, file):
    with pytest.raises(DataError, match=r"Eight' cannot take images of shape \(3, 9, 9\) \(.*\); pass size, or choose another network"):
        zoo.load(f"{file}:Eight", folder(tmp_path / "images", (9, 9)))


def test_gray_pictures_are_repeated_for_a_network_that_takes_color_alone(file, tmp_path):
    model, images = zoo.load(f"{file}:Eight", "digits")
    assert images.image_shape == (3, 8, 8)
    assert zoo.model_info(model).channels == 3
    shown = next(iter(images.test))[0]
    assert torch.equal(shown[:, 0], shown[:, 2])
    color = zoo.build("resnet20(width=4)", 10, 3, 8, seed=9)
    zoo.save_weights(color.state_dict(), tmp_path / "w.safetensors")
    model, images = zoo.load("resnet20(width=4)", "digits", tmp_path / "w.safetensors")
    assert (module_state.weights_hash(model), images.image_shape) == (module_state.weights_hash(color), (3, 8, 8))


def test_color_pictures_after_a_gray_one_are_a_color_set(tmp_path):
    write_folder(tmp_path, {"a": 2}, gray=True)
    write_folder(tmp_path, {"b": 4})
    model, images = zoo.load("resnet20(width=4)", f"folder:{tmp_path}")
    assert (zoo.model_info(model).channels, images.image_shape) == (3, (3, 8, 8))
    assert sum(len(x) for split in (images.calibration, images.test) for x, _, _ in split) == 6
    with pytest.raises(DataError, match=r"cannot take images of shape \(1, 40, 40\)"):
        zoo.load("torchvision:alexnet", folder(tmp_path / "small", (40, 40), gray=True))


def test_a_device_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(InputError, match=r"device: expected one of cpu.*, received 'cuda:99'"):
        zoo.load("resnet20(width=4)", "digits", device="cuda:99")
    with pytest.raises(InputError, match="received 'gpu'"):
        zoo.load("resnet20(width=4)", "digits", device="gpu")
    with pytest.raises(InputError, match="holds numbers, received 'meta'"):
        zoo.load("resnet20(width=4)", "digits", device="meta")


def test_an_error_without_a_message_is_said_by_its_name(tmp_path):
    (tmp_path / "strict.py").write_text(STRICT)
    with pytest.raises(DataError, match=r"cannot take images of shape \(3, 9, 9\) \(AssertionError, .*:\d+\)"):
        zoo.load(f"{tmp_path}/strict.py:Strict", folder(tmp_path / "images", (9, 9)))


def test_labels_outside_the_networks_classes_say_so(tmp_path, file):
    zoo.load(f"{file}:Three", folder(tmp_path / "three", (8, 8), classes=3))
    with pytest.raises(DataError, match=r"Three' has 3 classes, the labels of folder:.*four reach 3"):
        zoo.load(f"{file}:Three", folder(tmp_path / "four", (8, 8), classes=4))


@pytest.mark.parametrize(("name", "got"), [("Maps", r"\(2, 4, 8, 8\)"), ("Twice", "tuple")])
def test_networks_without_logits_say_so(tmp_path, file, name, got):
    with pytest.raises(DataError, match=rf"expected logits of shape \(images, classes\), received {got}"):
        zoo.load(f"{file}:{name}", folder(tmp_path / "images", (8, 8)))


def test_the_only_rows_of_numbers_in_a_tuple_are_the_logits(tmp_path, file):
    model, images = zoo.load(f"{file}:Pair", folder(tmp_path / "images", (8, 8)))
    right = [model(x)[0].argmax(1) == y for x, y, _ in images.test]
    assert evaluate(model, images.test).correct == sum(int(part.sum()) for part in right)


def test_errors_of_the_parts_come_through(tmp_path):
    with pytest.raises(InputError, match="no network is called nothing"):
        zoo.load("nothing", "digits")
    with pytest.raises(DataError, match="unknown data 'nothing'"):
        zoo.load("resnet20", "nothing")
    with pytest.raises(WeightsError, match="found nothing there"):
        zoo.load("resnet20(width=4)", "digits", tmp_path / "none.safetensors")


def test_the_labels_of_a_table_may_reach_fewer_classes_than_it_names(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1, 2, 1] * 10)
    model, images = zoo.load("resnet20(width=4)", f"hf:{tmp_path}")
    assert images.classes == 3
    assert logits(model, images).shape[1] == 3


def test_the_public_names_are_there():
    assert set(zoo.__all__) <= set(dir(zoo))
    assert {"load", "build", "network_names", "read_weights", "load_weights", "train", "toys"} <= set(zoo.__all__)
