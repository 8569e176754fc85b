"""torchvision's models, transforms and data sets, imported on first use, also where its compiled operators cannot load.

Next to a CPU-only PyTorch, the registry's torchvision wheel (compiled against CUDA) fails on import with
"operator torchvision::nms does not exist": its Python side attaches shape rules to two operators, `nms` and `qnms`,
that its shared library would have declared. Networks, data sets and transforms use neither, so their declarations alone
make the import succeed; calling the operators still fails. What imports torchvision by itself, such as timm, is imported after
`load_torchvision()`. The import takes as long as that of PyTorch, so only what needs torchvision should cause it.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import torchvision
    from torchvision import datasets, models, transforms

OPERATORS = ("nms", "qnms")

__all__ = ["OPERATORS", "datasets", "load_torchvision", "models", "torchvision", "transforms"]

_declared: list[torch.library.Library] = []  # kept alive: the declarations end with the Library object


def _declare() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def load_torchvision() -> ModuleType:
    """torchvision, imported; packages that import it can be imported afterwards.

    Returns
    -------
    ModuleType
        The package.

    Examples
    --------
    >>> load_torchvision().__name__
    'torchvision'
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # partially imported modules
    _declare()
    return importlib.import_module("torchvision")


def __getattr__(name: str) -> Any:
    if name not in ("torchvision", "models", "transforms", "datasets"):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    package = load_torchvision()
    return package if name == "torchvision" else importlib.import_module(f"torchvision.{name}")
