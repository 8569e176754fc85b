"""Mixing: convolutions, transposed convolutions and linear layers, whose weights make new channels of others.

Their inputs are laid out for a re-fit as sums over patches; the covariance of patches is never formed. `FunctionalLayers` finds the
layer that a function such as F.linear carries out when it is given the layer's own weight.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from channelscope.network.operations.operation import (
    TABLE,
    Layout,
    Operation,
    WeightedLayer,
    Window,
    inherits_forward,
    names,
    of_function,
    of_module,
    register,
)
from channelscope.network.operations.step import Call, Operand, Step
from channelscope.network.removal.labels import FIXED, PARAMETERS, channels_in, compact, full

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Mix:
    """How a weight is laid out, and along which axis of the values the channels lie."""

    axis: int
    out: int
    """axis of the weight along which its outputs lie"""
    into: int
    """axis of the weight along which its inputs lie"""
    taps: int = 1
    groups: int = 1
    positions: int = 1
    linear: bool = False
    """whether it is a linear layer"""


def mix(step: Step, how: Mix, weight: Operand, bias: Operand | None) -> Tensor:
    """Labels of the outputs of a layer: new channels, one for each row of the weight.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="0"))))
    >>> from channelscope.network.operations.operation import TABLE
    >>> TABLE["convolution"].labels(step).flatten().tolist()  # new channels, one for each row of the weight
    [0, 1, 2]
    """
    walk, labels, shape = step.walk, step.labels(), tuple(step.value.shape)
    short = compact(labels)
    others = [axis for axis, size in enumerate(short.shape) if size > 1 and axis != how.axis]
    if short.shape[how.axis] == 1 and others and walk.removable(short) and (how.taps == 1 or max(others) < how.axis):
        sizes = [shape[axis] if size == 1 else size for axis, size in enumerate(short.shape)]
        return short.expand(sizes)  # it mixes positions, and channels lie along another axis
    if how.taps > 1 and others and max(others) > how.axis and step.carries(short):
        step.hold(f"the kernels of {step.place} lie across its channels", labels)
        return full(shape)
    if _depends(step, weight):
        step.hold(f"the weights of {step.place} depend on the image or on other layers")
        return full(shape)
    reads = step.channels(axis=how.axis, why=f"{step.place} reads several channels as one")
    reads = torch.where(channels_in(reads), reads, FIXED)
    if how.groups == 1:
        walk.hold_factors(reads, f"{step.place} reads them")
    if how.groups > 1 and not _learned(step, weight):
        return _filtered(step, how, weight, reads)
    key, name = _named(step, weight)
    writes = walk.channels(key, name, shape[how.axis])
    if how.groups > 1:
        blocks = torch.cat([reads.view(how.groups, -1), writes.view(how.groups, -1)], 1)
        for block in blocks:
            walk.union.unite_all(block, f"{step.place} ties its groups' inputs to its outputs")
    else:
        walk.follow(weight, how.into, reads, step.node.name)
    grouped_out = how.groups > 1 and how.out == 1
    walk.follow(weight, 0 if grouped_out else how.out, reads if grouped_out else writes, step.node.name)
    if bias is not None:
        walk.follow(bias, 0, writes, step.node.name)
    walk.add_layer(step, name, reads, writes, how)
    return step.spread(writes, how.axis, shape)


def _depends(step: Step, weight: Operand) -> bool:
    if weight.node is None:
        return False
    return weight.node in step.walk.dynamic or step.carries(step.walk.labels[weight.node])


def _learned(step: Step, weight: Operand) -> bool:
    """Whether a weight is, or is computed from, parameters, and not from buffers and constants alone."""
    seen, stack = set(), [weight.node] if weight.node is not None else []
    paths = [] if weight.path is None else [weight.path]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += node.all_input_nodes
            paths += [str(node.target)] if node.op == "get_attr" else []
    return any(path in step.walk.parameters for path in paths)


def _filtered(step: Step, how: Mix, weight: Operand, reads: Tensor) -> Tensor:
    """Each channel passes a filter of its own that is not learned, as in an anti-aliasing blur."""
    shape = tuple(step.value.shape)
    if shape[how.axis] != len(reads) or how.groups != len(reads):
        step.hold(f"{step.place} filters its channels with fixed weights")
        return full(shape)
    step.walk.follow(weight, 0, reads, step.node.name)
    step.walk.add_layer(step, step.place, reads, reads, how)
    return step.spread(reads, how.axis, shape)


def _named(step: Step, weight: Operand) -> tuple[str, str]:
    """What tells a weight from others, and the name of its layer: a module's path where there is one."""
    walk = step.walk
    if weight.path is not None:
        path = walk.source(weight.path).name
        owner = path.rpartition(".")[0]
        return path, str(step.node.target) if step.module is not None else owner if path.endswith(".weight") else path
    assert weight.node is not None
    labels = walk.labels[weight.node]
    names_ = [source.name for source, _ in walk.sources.holding(labels.flatten())]
    owner = walk.owner.get(step.node.name, "")
    entry = walk.entry_of(owner)
    name = owner if entry is not None and entry.weighted else names_[0].rpartition(".")[0] if names_ else step.node.name
    return "+".join(names_) or step.node.name, name or step.node.name


def _operands(step: Step) -> tuple[Operand, Operand | None] | None:
    weight = step.operand("weight")
    if weight is None:
        return None
    if weight.path is None and weight.node is not None and bool((step.walk.labels[weight.node] < PARAMETERS).all()):
        step.walk.compute(weight.node)
    bias = step.operand("bias")
    if bias is not None and bias.node is not None and bias.path is None and bias.node in step.walk.dynamic:
        return None
    return weight, bias


def _mixed(step: Step, how: Mix) -> Tensor:
    found = _operands(step)
    if found is None:
        step.hold(f"the weights of {step.place} are not tensors of its own")
        return full(tuple(step.value.shape))
    return mix(step, how, *found)


def _linear(step: Step) -> Tensor:
    value = step.value
    return _mixed(step, Mix(value.dim() - 1, 0, 1, positions=value.numel() // max(value.shape[-1], 1), linear=True))


def _convolution(step: Step) -> Tensor:
    value, weight = step.value, _weight(step)
    axis = value.dim() - 1 - (weight.dim() - 2)
    positions = value.numel() // max(value.shape[axis], 1)
    return _mixed(step, Mix(axis, 0, 1, weight[0, 0].numel(), int(step.number("groups", 1)), positions))


def _transposed(step: Step) -> Tensor:
    labels, weight = step.labels(), _weight(step)
    axis = labels.dim() - 1 - (weight.dim() - 2)
    positions = labels.numel() // max(labels.shape[axis], 1)
    return _mixed(step, Mix(axis, 1, 0, weight[0, 0].numel(), int(step.number("groups", 1)), positions))


def _weight(step: Step) -> Tensor:
    operand = step.operand("weight")
    assert operand is not None
    return operand.value


def _linear_macs(step: Step) -> int:
    return step.value.numel() * _weight(step).shape[-1]


def _convolution_macs(step: Step) -> int:
    return step.value.numel() * _weight(step)[0].numel()


def _transposed_macs(step: Step) -> int:
    source = step.walk.values[step.argument("input").name]
    return source.numel() * _weight(step)[0].numel()


def _adjust_linear(module: nn.Module, kept: Tensor | None) -> None:
    module.out_features, module.in_features = module.weight.shape  # type: ignore[assignment,union-attr,misc]


def _adjust_convolution(module: nn.Module, kept: Tensor | None) -> None:
    rows, columns = module.weight.shape[:2]  # type: ignore[union-attr,index,misc]
    if module.groups != 1:  # type: ignore[comparison-overlap]
        module.groups = module.groups * rows // module.out_channels  # type: ignore[assignment,operator]
    module.out_channels, module.in_channels = rows, columns * module.groups  # type: ignore[assignment,operator]


def _adjust_transposed(module: nn.Module, kept: Tensor | None) -> None:
    rows, columns = module.weight.shape[:2]  # type: ignore[union-attr,index,misc]
    if module.groups != 1:  # type: ignore[comparison-overlap]
        module.groups = module.groups * rows // module.in_channels  # type: ignore[assignment,operator]
    module.in_channels, module.out_channels = rows, columns * module.groups  # type: ignore[assignment,operator]


def _linear_layer(module: nn.Module) -> WeightedLayer:
    rows, columns = module.weight.shape  # type: ignore[union-attr,misc]
    return WeightedLayer(int(columns), int(rows), tokens=True)


def _convolution_layer(module: Any) -> WeightedLayer:
    """How the kernels of a convolution move; padding 'same' and 'valid' resolved."""
    kernel, dilation = tuple(module.kernel_size), tuple(module.dilation)
    if isinstance(module.padding, str):
        total = [step * (size - 1) if module.padding == "same" else 0 for step, size in zip(dilation, kernel, strict=True)]
        pads = tuple((amount // 2, amount - amount // 2) for amount in total)
    else:
        pads = tuple((int(amount), int(amount)) for amount in module.padding)
    mode = "constant" if module.padding_mode == "zeros" else str(module.padding_mode)
    axis = int(isinstance(module, TRANSPOSED))
    return WeightedLayer(
        module.in_channels, module.out_channels, int(module.groups), axis, False, kernel, tuple(module.stride), dilation, pads, mode
    )


def _window(call: Call) -> Window | None:
    if call.module is None:
        return None
    layer = _convolution_layer(call.module)
    return tuple(zip(layer.kernel, layer.stride, (before for before, _ in layer.pads), layer.dilation, strict=True))


def _fits_linear(module: nn.Module) -> str:
    return ""


def _linear_products(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Tensor:
    return (outputs.flatten(0, -2).T @ inputs.flatten(0, -2)).double()


def _linear_pooled(module: nn.Module, inputs: Tensor, size: tuple[int, ...]) -> Tensor:
    return inputs.flatten(1, -2).mean(1)[:, None] if inputs.dim() > 2 else inputs[:, None]


def _fits_convolution(module: nn.Module) -> str:
    assert isinstance(module, nn.modules.conv._ConvNd)
    if module.weight.dim() != 4:
        return f"{type(module).__name__} is not a linear layer or a two-dimensional convolution"
    if module.padding_mode != "zeros" and _padding(module) != (0, 0):
        return f"it pads with {module.padding_mode}"
    uneven = [step * (size - 1) % 2 for step, size in zip(module.dilation, module.kernel_size, strict=True)]
    return "its padding is not the same on both sides" if module.padding == "same" and any(uneven) else ""


def _convolution_products(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Tensor:
    """The backward pass of the weights, with `outputs` in the place of gradients."""
    assert isinstance(module, nn.Conv2d)
    shape = (outputs.shape[1], inputs.shape[1] // module.groups, *module.kernel_size)
    stride, dilation = module.stride, module.dilation
    product = nn.grad.conv2d_weight(inputs, shape, outputs, stride, _padding(module), dilation, module.groups)  # type: ignore[arg-type]
    return product.flatten(1).double()


def _convolution_pooled(module: nn.Module, inputs: Tensor, size: tuple[int, ...]) -> Tensor:
    assert isinstance(module, nn.Conv2d)
    rows, columns = _padding(module)
    padded = F.pad(inputs, (columns, columns, rows, rows))
    taps = []
    for row in range(module.kernel_size[0]):
        for column in range(module.kernel_size[1]):
            first = row * module.dilation[0], column * module.dilation[1]
            last = [start + step * (count - 1) + 1 for start, step, count in zip(first, module.stride, size, strict=True)]
            window = padded[:, :, first[0] : last[0] : module.stride[0], first[1] : last[1] : module.stride[1]]
            taps.append(window.mean((2, 3)))
    return torch.stack(taps, 2).unflatten(1, (module.groups, -1)).flatten(2)


def _padding(module: nn.modules.conv._ConvNd) -> tuple[int, ...]:
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding == "same":
        return tuple(step * (size - 1) // 2 for step, size in zip(module.dilation, module.kernel_size, strict=True))
    return tuple(int(amount) for amount in module.padding)


LINEAR = Layout(_fits_linear, _linear_products, _linear_pooled)
CONVOLUTION = Layout(_fits_convolution, _convolution_products, _convolution_pooled)

register(Operation("linear", _linear, modules=(nn.Linear,), functions=names("linear"), arguments=("input", "weight", "bias"),
    macs=_linear_macs, adjust=_adjust_linear, weighted=True, traces=True, layer=_linear_layer, whole=True, layout=LINEAR))  # fmt: skip
register(Operation("convolution", _convolution, modules=CONVOLUTIONS, functions=names("conv1d conv2d conv3d convolution"),
    arguments=("input", "weight", "bias", "stride", "padding", "dilation", "groups"), macs=_convolution_macs, adjust=_adjust_convolution,
    weighted=True, traces=True, window=_window, layer=_convolution_layer, whole=True, layout=CONVOLUTION))  # fmt: skip
register(Operation("transposed convolution", _transposed, modules=TRANSPOSED,
    functions=names("conv_transpose1d conv_transpose2d conv_transpose3d"),
    arguments=("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"), macs=_transposed_macs,
    adjust=_adjust_transposed, weighted=True, traces=True, layer=_convolution_layer, whole=True))  # fmt: skip


@dataclass(frozen=True, eq=False)
class FunctionalCall:
    """A call of a function that carries out a layer on the layer's own weight, with its bias or another one."""

    path: str
    """path of the layer"""
    layer: nn.Module
    input: Tensor
    bias: Tensor | None
    """what the call adds, one number for each output: the layer's own bias, one that is computed, or None"""

    def rebiased(self, value: Tensor, run: Callable[..., Tensor] = lambda function, *args: function(*args)) -> Tensor:
        """What the call returns, from what the layer returns.

        Parameters
        ----------
        value
            What the layer returns on the input.
        run
            How a function of tensors is carried out.

        Examples
        --------
        >>> layer, other = nn.Linear(2, 3), torch.ones(3)
        >>> tokens = torch.ones(1, 2)
        >>> call = FunctionalCall("0", layer, tokens, other)
        >>> torch.allclose(call.rebiased(layer(tokens)), F.linear(tokens, layer.weight, other))
        True
        """
        own = self.layer._parameters["bias"]
        if self.bias is own:
            return value
        if own is None:
            assert self.bias is not None
            shift = self.bias
        else:
            shift = run(torch.neg, own) if self.bias is None else run(torch.sub, self.bias, own)
        if isinstance(self.layer, nn.modules.conv._ConvNd):
            shift = run(torch.reshape, shift, (-1, *[1] * len(self.layer.kernel_size)))
        return run(torch.add, value, shift)


class FunctionalLayers:
    """The layers of a network by their weights: which of them a function carries out that is given a layer's own weight.

    Parameters
    ----------
    model
        The network. Layers whose weight is computed, or whose forward pass is their own, are left out.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3))
    >>> layers, tokens = FunctionalLayers(net), torch.ones(1, 2)
    >>> call = layers.called(F.linear, (tokens, net[0].weight, net[0].bias), {})
    >>> call.path, call.layer is net[0], call.input is tokens
    ('0', True, True)
    >>> layers.called(F.linear, (tokens, 2 * net[0].weight), {}) is None  # not the layer's own weight
    True
    """

    def __init__(self, model: nn.Module):
        self.layers: dict[int, tuple[str, nn.Module]] = {}
        for path, module in model.named_modules():
            if path and of_module(module) in (TABLE["linear"], TABLE["convolution"]) and inherits_forward(module):
                weight = module._parameters.get("weight")
                if weight is not None:
                    self.layers.setdefault(id(weight), (path, module))

    def called(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> FunctionalCall | None:
        """The layer that a call of a function carries out; None where there is none.

        Parameters
        ----------
        function, args, kwargs
            The call.
        """
        entry = of_function(function.__name__)
        if entry is None or entry.layer is None or len(args) + len(kwargs) > len(entry.arguments):
            return None
        given = dict(zip(entry.arguments, args, strict=False)) | kwargs
        path, module = self.layers.get(id(given.get("weight")), ("", None))
        if module is None or of_module(module) is not entry or "input" not in given or not _moves_alike(module, given):
            return None
        bias = given.get("bias")
        if isinstance(bias, Tensor) and bias.shape != given["weight"].shape[:1]:
            return None
        return FunctionalCall(path, module, given["input"], bias)


def _moves_alike(module: Any, given: dict[str, Any]) -> bool:
    """Whether a call of a function moves its kernels as a convolution does; always for a linear layer."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return True
    if module.padding_mode != "zeros" or given.get("groups", 1) != module.groups:
        return False
    known = {"stride": 1, "padding": 0, "dilation": 1}
    spatial = len(module.kernel_size)
    return all(_each(given.get(name, usual), spatial) == _each(getattr(module, name), spatial) for name, usual in known.items())


def _each(value: Any, spatial: int) -> Any:
    """A number for each spatial axis; a name such as 'same' as it is."""
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * spatial if len(values) == 1 else values


@contextmanager
def layers_called(model: nn.Module) -> Iterator[None]:
    """While inside, a function that is given a layer's own weight calls the layer, so that hooks on the layer are called too.

    Parameters
    ----------
    model
        The network.

    Examples
    --------
    >>> net, seen = nn.Sequential(nn.Linear(2, 3)), []
    >>> handle = net[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    >>> with layers_called(net):
    ...     value = F.linear(torch.ones(1, 2), net[0].weight, net[0].bias)
    >>> seen
    [torch.Size([1, 3])]
    """
    layers, running = FunctionalLayers(model), []
    handles: list[Any] = []
    for path, module in layers.layers.values():
        handles += [
            module.register_forward_pre_hook(lambda *_, path=path: running.append(path), prepend=True),
            module.register_forward_hook(lambda *_, path=path: running.remove(path), always_call=True),
        ]

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
            found = layers.called(func, args, kwargs or {})
            if found is None or found.path in running:
                return func(*args, **(kwargs or {}))
            return found.rebiased(found.layer(found.input))

    try:
        with Mode():
            yield
    finally:
        for handle in handles:
            handle.remove()
