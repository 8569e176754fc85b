"""Real images and networks: the numbers beside the weights are reached."""

import json
import time
from pathlib import Path

import pytest
import torch

from channelscope import data, zoo
from channelscope.data.sources import ImageSource

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
CIFAR, IMAGENET = f"hf:{DATA / 'cifar100'}", f"hf:{DATA / 'ilsvrc_val400'}"

pytestmark = [pytest.mark.data, pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not there")]


def right(model, split):
    with torch.inference_mode():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y, _ in split)


def weights(name):
    path = DATA / "weights" / name
    return path, json.loads(path.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def small():
    path, known = weights("cifar100_resnetsmall20.safetensors")
    model, images = zoo.load(f"{DATA / 'archs.py'}:ResNetSmall(depth=20)", CIFAR, path)
    return model, images, known


def test_cifar100_divides_as_promised(small):
    _, images, _ = small
    splits = (images.train, images.calibration, images.validation, images.test)
    assert [len(split) for split in splits] == [45_000, 5000, 5000, 10_000]
    assert images.classes == 100
    assert images.class_names[0] == "apple"
    assert images.image_shape == (3, 32, 32)
    rows = [set(split.indices.tolist()) for split in splits]
    assert rows[1] <= rows[0]
    assert not rows[1] & (rows[2] | rows[3])
    assert len(rows[0] | rows[2] | rows[3]) == 60_000


def test_every_shard_of_the_calibration_images_has_every_class(small):
    _, images, _ = small
    labels, index = images.calibration.labels, images.calibration.indices
    for shard in range(10):
        assert len(labels[index % 10 == shard].unique()) >= 98


def test_the_normalization_is_what_the_network_was_trained_with(small):
    _, images, known = small
    assert images.normalization[0] == pytest.approx(known["mean"], abs=0.003)
    assert images.normalization[1] == pytest.approx(known["std"], abs=0.003)


def test_the_cifar_network_reaches_its_accuracy(small):
    model, images, known = small
    accuracy = right(model, images.test.take(2000)) / 2000
    assert accuracy == pytest.approx(known["top1_first2000"] / 100, abs=0.035), "another 2,000 of the 10,000 test images"


def test_all_training_images_are_read_in_time():
    started = time.process_time()
    images = data.read_images(CIFAR)
    total = sum(len(y) for _, y, _ in images.train)
    assert total == 45_000
    assert time.process_time() - started < 40, "about 12 s on an idle machine"


def test_the_coarse_labels_are_a_further_column(small):
    _, images, _ = small
    coarse, fine = images.test.take(500).column("coarse_label"), images.test.take(500).labels.tolist()
    parents = dict(zip(fine, coarse, strict=True))
    assert all(parents[label] == parent for label, parent in zip(fine, coarse, strict=True))
    assert len(set(coarse)) == 20


@pytest.fixture(scope="module")
def lite():
    path, known = weights("imagenet_efficientnet_lite0.safetensors")
    model, images = zoo.load("timm:tf_efficientnet_lite0", ImageSource(IMAGENET, batch_size=50), path)
    return model, images, known


def test_four_hundred_images_are_halved(lite):
    _, images, _ = lite
    assert [len(split) for split in (images.train, images.calibration, images.validation, images.test)] == [0, 200, 0, 200]
    assert not set(images.calibration.indices.tolist()) & set(images.test.indices.tolist())
    assert images.classes == 1000
    assert images.class_names[:2] == ("tench", "goldfish")


def test_efficientnet_lite0_reaches_its_accuracy_with_timms_numbers(lite):
    model, images, known = lite
    assert images.normalization == ((0.5,) * 3, (0.5,) * 3)
    assert images.image_shape == (3, 224, 224)
    assert all(value.dtype != torch.float16 for value in model.state_dict().values())
    accuracy = (right(model, images.calibration) + right(model, images.test)) / 400
    assert accuracy == pytest.approx(known["top1_ilsvrc_val400"] / 100, abs=0.03)


def test_boxes_lie_inside_the_cropped_images(lite):
    _, images, _ = lite
    boxes = images.test.column("boxes")
    assert len(boxes) == 200
    for some in boxes:
        assert some
        for x0, y0, x1, y1 in some:
            assert 0 <= x0 <= x1 <= 224
            assert 0 <= y0 <= y1 <= 224


def test_the_squeezenet_reaches_its_accuracy_with_its_own_numbers(tmp_path):
    path, known = weights("imagenet_squeezenet1_0_deepcompressed.safetensors")
    (tmp_path / "nets.py").write_text(
        "from channelscope.data.torchvision_cpu import models\n\n"
        "def padded(num_classes):\n"
        "    model = models.squeezenet1_0(num_classes=num_classes)\n"
        "    model.classifier[1].padding = (1, 1)\n"
        "    return model\n"
    )
    mean = tuple(value / 255 for value in known["mean"])
    source = ImageSource(IMAGENET, batch_size=50, mean=mean, std=(1 / 255,))
    model, images = zoo.load(f"{tmp_path / 'nets.py'}:padded", source, path)
    assert images.image_shape == (3, 227, 227)
    accuracy = (right(model, images.calibration) + right(model, images.test)) / 400
    assert accuracy == pytest.approx(known["top1_ilsvrc_val200"] / 100, abs=0.05)
