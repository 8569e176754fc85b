"""torchvision's models, transforms and data sets, also where its compiled operators cannot load.

Next to a CPU-only PyTorch, the registry's torchvision wheel (compiled against CUDA) fails on import with
"operator torchvision::nms does not exist": its Python side attaches shape rules to two operators, `nms` and `qnms`,
that its shared library would have declared. Networks, data sets and transforms use neither, so their declarations alone
make the import succeed; calling the operators still fails. Whatever imports torchvision, timm included, imports this first.
"""

import importlib
import sys
from types import ModuleType

import torch

OPERATORS = ("nms", "qnms")

_declared: list[torch.library.Library] = []  # kept alive: the declarations end with the Library object


def _declare() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def _torchvision() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # partially imported modules
    _declare()
    return importlib.import_module("torchvision")


torchvision = _torchvision()

models = importlib.import_module("torchvision.models")

transforms = importlib.import_module("torchvision.transforms")

datasets = importlib.import_module("torchvision.datasets")
