"""Wrappers: the network inside torch.compile, DataParallel and averaged models."""

import sys
import warnings

import torch
from torch import nn

from channelscope.errors import TracingError

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
"""Modules that only pass their arguments on to the network they hold as `module`."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, with a warning, if it is wrapped by torch.compile, data parallelism or an averaged model.

    Parameters
    ----------
    model
        Any network; one that is not wrapped comes back as it is.

    Raises
    ------
    TracingError
        If the network is scripted: its steps cannot be seen.

    Examples
    --------
    >>> net = nn.Linear(2, 3)
    >>> unwrapped(net) is net
    True
    """
    found = model
    while (inner := _inside(found)) is not None:
        found = inner
    if isinstance(found, torch.jit.ScriptModule):
        raise TracingError(
            "expected a network written in Python, received one made by torch.jit.script or torch.jit.trace, whose steps cannot be seen: "
            "pass the nn.Module it was made from"
        )
    if found is not model:
        warnings.warn(
            f"the network is wrapped in {type(model).__name__}: the {type(found).__name__} inside is used, and layers have its names",
            UserWarning,
            stacklevel=3,
        )
    return found


def _inside(model: nn.Module) -> nn.Module | None:
    if isinstance(model, WRAPPERS):
        return model.get_submodule("module")
    compiled = sys.modules.get("torch._dynamo.eval_frame")  # nothing is compiled before this is imported
    if compiled is not None and isinstance(model, compiled.OptimizedModule):
        return model.get_submodule("_orig_mod")
    return None
