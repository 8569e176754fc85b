"""One layer's parameters cut to the channels that stay."""

from torch import Tensor, nn

from channelscope.network.removal.channels import LayerChannels


def slice_layer(module: nn.Module, layer: LayerChannels, keep: Tensor) -> None:
    """Cut one layer's weights in place; `keep` is bool over channel numbers, True at −1."""
    outputs = keep[layer.outputs].nonzero().flatten()
    if layer.taps == 0:
        for name in ("weight", "bias", "running_mean", "running_var"):
            _slice_parameter(module, name, 0, outputs)
        if "num_features" in module.__dict__:
            module.num_features = len(outputs)  # type: ignore[assignment]
        if isinstance(module, nn.PReLU):
            module.num_parameters = len(outputs)
        return
    inputs = keep[layer.inputs].nonzero().flatten()
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    _slice_parameter(module, "weight", 1 if transposed else 0, outputs)
    _slice_parameter(module, "bias", 0, outputs)
    if layer.groups == 1:
        _slice_parameter(module, "weight", 0 if transposed else 1, inputs)
    if isinstance(module, nn.Linear):
        module.in_features, module.out_features = len(inputs), len(outputs)
    elif isinstance(module, nn.modules.conv._ConvNd):
        if layer.groups > 1:
            module.groups = layer.groups * len(outputs) // len(layer.outputs)
        module.in_channels, module.out_channels = len(inputs), len(outputs)


def _slice_parameter(module: nn.Module, name: str, axis: int, index: Tensor) -> None:
    """Keep some slices of a parameter or buffer, if the module has it and they are not all kept."""
    old = module._parameters.get(name)
    if old is not None and len(index) < old.shape[axis]:
        new = old.detach().index_select(axis, index.to(old.device)).contiguous()
        module._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
    values = module._buffers.get(name)
    if values is not None and len(index) < values.shape[axis]:
        module._buffers[name] = values.index_select(axis, index.to(values.device)).contiguous()
