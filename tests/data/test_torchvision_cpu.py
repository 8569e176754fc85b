"""torchvision imports whether or not its compiled operators can be loaded."""

import subprocess
import sys

import pytest
import torch

from channelscope.data import torchvision_cpu

FRESH = f"""
import runpy
try:
    import torchvision
except RuntimeError as error:
    assert "torchvision::" in str(error)
found = runpy.run_path({torchvision_cpu.__file__!r})
found["load_torchvision"]()
import torchvision
assert found["load_torchvision"]() is torchvision
assert found["__getattr__"]("models").resnet18 is torchvision.models.resnet18
import timm
print(timm.create_model("resnet10t").num_classes)
"""


def test_networks_transforms_and_data_sets_are_there():
    assert torchvision_cpu.models.squeezenet1_1().num_classes == 1000
    assert torchvision_cpu.transforms.Resize(8)(torch.zeros(3, 16, 16)).shape == (3, 8, 8)
    assert {"CIFAR10", "CIFAR100"} <= set(dir(torchvision_cpu.datasets))


def test_the_declared_operators_exist_afterwards():
    for name in torchvision_cpu.OPERATORS:
        assert hasattr(torch.ops.torchvision, name)


def test_a_fresh_interpreter_can_import_timm_after_it_even_when_torchvision_failed_before():
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "1000"


def test_other_errors_are_not_hidden(monkeypatch):
    def broken(name):
        raise RuntimeError("something else")

    monkeypatch.setattr(torchvision_cpu.importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="something else"):
        torchvision_cpu.load_torchvision()


def test_a_missing_operator_is_declared_and_the_import_tried_again(monkeypatch):
    tried, declared = [], []

    def first_broken(name):
        tried.append(name)
        if len(tried) == 1:
            raise RuntimeError("operator torchvision::nms does not exist")
        return name

    monkeypatch.setattr(torchvision_cpu.importlib, "import_module", first_broken)
    monkeypatch.setattr(torchvision_cpu, "_declare", lambda: declared.append(True))
    monkeypatch.setattr(torchvision_cpu, "sys", type("Fake", (), {"modules": {"torchvision.ops": None, "torch": None}}))
    assert torchvision_cpu.load_torchvision() == "torchvision"
    assert tried == ["torchvision", "torchvision"]
    assert declared == [True]
    assert list(torchvision_cpu.sys.modules) == ["torch"], "half-made modules are forgotten"
