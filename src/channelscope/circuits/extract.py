"""extract: a circuit as a smaller network of its own, with the same output as the masked one."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from channelscope.circuits.circuit import Circuit, trim
from channelscope.circuits.layout import Kept, alive, layout
from channelscope.circuits.provenance import kernels_in, upstream
from channelscope.circuits.target import Target
from channelscope.errors import MismatchError, TracingError
from channelscope.net.coupling import Layer
from channelscope.net.graph import evaluating, execute, trace
from channelscope.net.slicing import shrink_layer
from channelscope.types import Float

ROUNDING = 1e-3
"""Relative difference allowed between the extracted and the masked feature; smaller layers add up in another order."""

IDLE = (nn.Identity, nn.modules.dropout._DropoutNd)


class Extract(nn.Module):
    """A circuit that stands alone: images in, the feature at every position out."""

    def __init__(self, body: fx.GraphModule, channels: list[int], weights: list[float], axis: int):
        super().__init__()
        self.body = body
        self.channels = channels
        self.axis = axis
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, images: Float[Tensor, "images C H W"]) -> Float[Tensor, "images ..."]:
        """The feature, (images, rows, columns) for a map, (images,) for a logit."""
        maps = self.body(images).movedim(self.axis + 1, -1)
        return maps[..., self.channels] @ self.weights.to(maps)


def extract(circuit: Circuit, target: Target) -> Extract:
    """The circuit as a stand-alone module; the network itself stays as it is.

    Channels that nothing depends on are gone, masked kernels are zero in the rest. The result is compared with the masked
    network on noise before it is handed out.

    Raises   MismatchError if it computes something else.
    Source   Hamblin, Konkle, Alvarez 2022 (extraction)
    """
    circuit = trim(circuit, target)
    kept = layout(circuit, target)
    kernels = alive(circuit, target)
    steps = fx.Graph()
    modules: dict[str, Any] = {}
    copies: dict[fx.Node, fx.Node] = {}
    for node in upstream(target.graph, target.step):
        name = str(node.target)
        if _passes(target, node):
            copies[node] = copies[node.all_input_nodes[0]]
            continue
        if node.op == "call_module" and name not in modules:
            modules[name] = _smaller(target, node, kept, kernels.get(name))
        copies[node] = _inlined(steps, node, modules, copies, target, kept) or steps.node_copy(node, copies.__getitem__)
        if node.op == "get_attr":
            modules[name] = _attribute(target, name)
    steps.output(copies[target.graph.nodes[target.step]])
    body = fx.GraphModule(modules, steps, "Circuit")
    left = kept.get(target.step)
    places = list(target.feature.channels) if left is None else [int(left[:channel].sum()) for channel in target.feature.channels]
    small = Extract(body, places, [weight for _, weight in target.feature.weights], target.axis).to(target.device).eval()
    _compare(small, circuit, target)
    return small


def _passes(target: Target, node: fx.Node) -> bool:
    """Whether a step does nothing in evaluation mode."""
    if node.op == "call_module":
        return isinstance(target.graph.modules[str(node.target)], IDLE)
    return node.op == "call_function" and node.target.__name__ in ("dropout", "stochastic_depth", "drop_path")  # type: ignore[union-attr]


def _smaller(target: Target, node: fx.Node, kept: Kept, kernels: Tensor | None) -> nn.Module:
    """A copy of one module with only the kept channels."""
    module = copy.deepcopy(target.graph.modules[str(node.target)])
    module.requires_grad_(False)
    parent = node.all_input_nodes[0].name
    if kernels is not None and isinstance(module, nn.Conv2d | nn.Linear):
        weight = module.weight
        weight.mul_(kernels.to(weight).view(*kernels.shape, *[1] * (weight.dim() - 2)))
    if node.name not in kept or parent not in kept or not any(True for _ in module.parameters(recurse=False)):
        return module
    ins, outs = torch.from_numpy(kept[parent]), torch.from_numpy(kept[node.name])
    if bool(ins.all()) and bool(outs.all()):
        return module
    inputs, outputs = torch.arange(len(ins)), torch.arange(len(ins), len(ins) + len(outs))
    groups = int(module.groups) if isinstance(module, nn.Conv2d) else 1
    taps = int(kernels_in(module))
    shrink_layer(module, Layer(str(node.target), node.name, inputs, outputs, taps, 0, groups), torch.cat([ins, outs, torch.tensor([True])]))
    return module


def plain(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch.nn that the module is, or does the same as; None if it has a forward pass of its own.

    Source   definition
    """
    for kind in type(module).__mro__:
        if vars(nn).get(kind.__name__) is kind:
            return kind if type(module).forward is kind.forward else None
    return None


def _inlined(
    steps: fx.Graph, node: fx.Node, modules: dict[str, Any], copies: dict[fx.Node, fx.Node], target: Target, kept: Kept
) -> fx.Node | None:
    """The steps inside a module that torch.nn does not have, in the place of its call, so that only plain parts are left."""
    if node.op != "call_module" or plain(modules[str(node.target)]) is not None or len(node.all_input_nodes) != 1:
        return None
    (parent,) = node.all_input_nodes
    shape = list(target.graph.shapes[parent.name])
    shape[1] = int(kept[parent.name].sum()) if parent.name in kept else shape[1]
    module = modules[str(node.target)]
    try:
        inside = trace(module, torch.zeros(shape))
    except TracingError:
        return None  # it stays one step
    made = next(each for each in inside.steps.nodes if each.op == "output").args[0]
    within: dict[fx.Node, fx.Node] = {}
    for each in upstream(inside, made.name):  # type: ignore[union-attr]
        if each.op == "placeholder":
            within[each] = copies[parent]
            continue
        within[each] = steps.node_copy(each, within.__getitem__)
        if each.op in ("call_module", "get_attr"):
            name = f"{node.target}.{each.target}"
            within[each].target = name
            modules[name] = (
                inside.modules[str(each.target)] if each.op == "call_module" else execute(module, "get_attr", each.target, (), {})
            )
    return within[made]  # type: ignore[index]


def _attribute(target: Target, name: str) -> Tensor:
    if name in target.graph.constants:
        return target.graph.constants[name]
    path, _, last = name.rpartition(".")
    value = getattr(target.model.get_submodule(path), last)
    return value.detach().clone()


@torch.no_grad()
def _compare(small: Extract, circuit: Circuit, target: Target) -> None:
    shape = target.graph.shapes[target.graph.inputs[0]][1:]
    like = next(target.model.parameters())
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(like)
    with evaluating(target.model), target.without((~circuit).marks):
        expected = target.map(noise)
    received = small(noise).reshape(len(noise), -1)
    error = (received - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    if not float(error) < ROUNDING:
        raise MismatchError(
            f"the extracted circuit is {float(error):.2g} (relative) away from the masked network; please report the network"
        )
