"""Opaque: what the table has no entry for. Its inputs and outputs are kept whole, its multiply-adds are counted as executed."""

from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode

from channelscope.network.labeling.labels import fixed
from channelscope.network.operations.operation import Operation, register
from channelscope.network.operations.step import Step


def kept_whole(step: Step) -> Any:
    """Labels of a value that nothing can be removed from, with all channels of the arguments kept.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.labeling.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="1"))))
    >>> kept_whole(step).unique().tolist(), walk.groups
    ([-1], ())
    """
    reason = f"{step.place} ({step.spelled}) may look at all its channels at once" if step.module is not None else (
        f"{step.place} may look at all its channels at once"
    )  # fmt: skip
    for node in step.node.all_input_nodes:
        step.walk.hold(_flat(step.walk.labels[node]), reason)
    if not step.static:
        step.walk.opaque[step.place] = reason
    return fixed(step.value)


def _flat(labels: Any) -> Tensor:
    parts: list[Tensor] = []
    stack = [labels]
    while stack:
        part = stack.pop()
        if isinstance(part, Tensor):
            parts.append(part.unique())
        elif isinstance(part, tuple | list):
            stack += part
        elif isinstance(part, dict):
            stack += part.values()
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


def computed(step: Step) -> Any:
    """Labels of a weight computed from parameters: theirs where the shape stays, else new ones for its own elements.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.labeling.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="1"))))
    >>> torch.equal(computed(step), step.labels())  # the shape stays, so the labels do
    True
    """
    value = step.value
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return fixed(value)
    for labels in step.inputs():
        if labels.shape == value.shape:
            return labels
    return fixed(value)


def executed(step: Step) -> int:
    """Multiply-adds of a step, counted while it is carried out again on its recorded inputs.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.labeling.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="0"))))
    >>> executed(step)  # three products
    3
    """
    args: Any = map_arg(step.node.args, lambda node: step.walk.values[node.name])
    kwargs: Any = map_arg(step.node.kwargs, lambda node: step.walk.values[node.name])
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        if step.module is not None:
            step.module(*args, **kwargs)
        elif step.node.op == "call_method":
            getattr(args[0], str(step.node.target))(*args[1:], **kwargs)
        else:
            step.node.target(*args, **kwargs)  # type: ignore[operator]
    return counter.get_total_flops() // 2


register(Operation("opaque", kept_whole, macs=executed))
