"""Elementwise: activations and everything else that treats each element on its own."""

from torch import Tensor, nn

from channelscope.network.operations.labels import full
from channelscope.network.operations.meeting import met
from channelscope.network.operations.operation import Operation, names, register
from channelscope.network.operations.step import Step

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.LogSigmoid, nn.RReLU,
)  # fmt: skip
"""Activations without parameters."""
IDLE = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
"""Modules that do nothing in evaluation mode."""


def _labels(step: Step) -> Tensor:
    labels, *others = step.inputs()
    for other in others:
        labels = met(step.walk, labels, other, step)
    return labels.expand(step.value.shape)


def _constant(step: Step) -> Tensor:
    return full(tuple(step.value.shape))


register(Operation("idle", _labels, modules=IDLE, functions=names("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout "
    "clone contiguous detach alias requires_grad to float double half bfloat16 type_as type cpu cuda _to_copy"), pointwise=True, local=True,
    traces=True))  # fmt: skip
register(Operation("elementwise", _labels, modules=ACTIVATIONS, functions=names(
    "relu relu6 gelu silu mish hardswish hardsigmoid hardtanh leaky_relu elu celu selu sigmoid tanh softplus softsign tanhshrink hardshrink "
    "softshrink threshold logsigmoid rrelu clamp clip clamp_min clamp_max neg square sqrt rsqrt abs exp exp2 expm1 log log2 log10 log1p "
    "pow reciprocal sin cos erf erfinv round floor ceil trunc masked_fill nan_to_num bool int long bernoulli tril triu rpow softcap "
    "square_ view_as_complex view_as_real positive float_power stochastic_depth drop_path"),
    pointwise=True, local=True, traces=True))  # fmt: skip
register(Operation("constant", _constant, functions=names(
    "zeros_like ones_like full_like empty_like rand_like randn_like zero fill arange linspace zeros ones empty full new_zeros new_full "
    "new_ones new_empty new_tensor tensor as_tensor rand randn eye triu_indices tril_indices meshgrid_ normal_"), local=True))  # fmt: skip
