"""Modules that hide their layers, opened, so that channels can be seen and cut: the projections of PyTorch's multi-head attention, and
convolutions and linear layers that compute their weights anew at every pass, as for weight standardization, with these as they are."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from channelscope.errors import FAILURES, no_lack_of_memory
from channelscope.network.operations.operation import inherits_forward, layer_of, type_with_entry


class InProjection(nn.Linear):
    """Queries, keys and values as one linear layer; in a state dictionary its parameters are named as in nn.MultiheadAttention."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        own: dict[str, Any] = {}
        super()._save_to_state_dict(own, "", keep_vars)
        destination.update({f"{prefix[:-1]}_{name}": value for name, value in own.items()})


class LayeredAttention(nn.MultiheadAttention):
    """Multi-head attention of which `in_proj` and `out_proj` are linear layers; computes what `nn.MultiheadAttention` computes.

    Its state dictionary is that of `nn.MultiheadAttention`. Queries and keys, and values, may be narrower than the input.

    Parameters
    ----------
    old
        The attention whose parameters it shares: with queries, keys and values of one width and nothing added to the sequence.

    Examples
    --------
    >>> import torch
    >>> old = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    >>> new, tokens = LayeredAttention(old), torch.randn(2, 5, 12)
    >>> torch.allclose(new(tokens, tokens, tokens)[0], old(tokens, tokens, tokens)[0], atol=1e-6)
    True
    >>> new.in_proj.weight is old.in_proj_weight, list(new.state_dict()) == list(old.state_dict())
    (True, True)
    """

    def __init__(self, old: nn.MultiheadAttention):
        nn.Module.__init__(self)  # the parameters are the old ones
        self.embed_dim, self.head_dim = old.embed_dim, old.head_dim
        self.num_heads, self.width, self.scale = old.num_heads, old.embed_dim, old.head_dim**-0.5
        self.batch_first, self.dropout, self.training = old.batch_first, old.dropout, old.training
        self.in_proj = InProjection(old.embed_dim, 3 * old.embed_dim, bias=old.in_proj_bias is not None, device="meta")
        self.in_proj.weight, self.in_proj.bias = old.in_proj_weight, old.in_proj_bias
        self.in_proj.training = old.training
        self.out_proj = old.out_proj
        self.register_load_state_dict_pre_hook(_rename)
        self._qkv_same_embed_dim = False  # keeps transformer layers from their fused pass, which assumes square projections

    @property
    def in_proj_weight(self) -> Tensor:
        """Weight of the projections to queries, keys and values, one below the other."""
        return self.in_proj.weight

    @property
    def in_proj_bias(self) -> Tensor | None:
        """Bias of these projections."""
        return self.in_proj.bias

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        **hints: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The attended values, and the attention where it is asked for, as torch.nn.MultiheadAttention returns them.

        `hints` such as is_causal say what the mask says too.
        """
        batched = query.dim() == 3
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self._projected(query, key, value))
        scores = q @ k.transpose(-1, -2) * self.scale
        for mask in self._masks(attn_mask, key_padding_mask, q.shape[0]):
            scores = scores.masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        attention = F.dropout(scores.softmax(-1), self.dropout, self.training)
        output = self.out_proj((attention @ v).transpose(1, 2).flatten(2))
        output = output if self.batch_first else output.transpose(0, 1)
        shown = (attention.mean(1) if average_attn_weights else attention) if need_weights else None
        if batched:
            return output, shown
        return output.squeeze(0 if self.batch_first else 1), None if shown is None else shown.squeeze(0)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values, (images, places, width)."""
        ends = (self.width, 2 * self.width)
        if query is key and key is value:
            return list(self.in_proj(self._sequence(query)).tensor_split(ends, -1))
        weights = self.in_proj.weight.tensor_split(ends)
        biases = (None,) * 3 if self.in_proj.bias is None else self.in_proj.bias.tensor_split(ends)
        parts = map(self._sequence, (query, key, value))
        return [F.linear(part, weight, bias) for part, weight, bias in zip(parts, weights, biases, strict=True)]

    def _sequence(self, part: Tensor) -> Tensor:
        """A sequence with images first, also where it is of one image without an axis for it."""
        if part.dim() == 2:
            return part.unsqueeze(0)
        return part if self.batch_first else part.transpose(0, 1)

    def _masks(self, mask: Tensor | None, padding: Tensor | None, images: int) -> list[Tensor]:
        """Masks in the shape (images, heads, queries, keys), or one that spreads to it."""
        found = []
        if mask is not None:
            found.append(mask.unflatten(0, (images, -1)) if mask.dim() == 3 else mask)
        if padding is not None:
            found.append(padding.view(-1, 1, 1, padding.shape[-1]))
        return found


def _rename(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give the parameters of `in_proj` in a state dictionary of nn.MultiheadAttention their names as a layer."""
    for name in ("weight", "bias"):
        if f"{prefix}in_proj_{name}" in state_dict:
            state_dict[f"{prefix}in_proj.{name}"] = state_dict.pop(f"{prefix}in_proj_{name}")


def in_layers(model: nn.Module) -> nn.Module:
    """The network with its multi-head attention in layers and computed weights as they are; the network itself where it has neither.

    Parameters and buffers are shared with the network, computed weights are not; the copy is in evaluation mode. Attention with its
    own forward pass, hooks, projections of several widths, computed weights, or something added to the sequence stays as it is. So
    does a layer that does more than compute a weight, or has hooks that do.

    Parameters
    ----------
    model
        The network; it stays as it is.

    Examples
    --------
    >>> net = nn.Sequential(nn.TransformerEncoderLayer(8, 2))
    >>> other = in_layers(net)
    >>> type(other[0].self_attn).__name__, other[0].linear1.weight is net[0].linear1.weight, in_layers(other) is other
    ('LayeredAttention', True, True)
    """
    plain = {id(module): found for module in model.modules() if (found := plain_layer(module)) is not None}
    if not plain and not any(map(_opens, model.modules())):
        return model
    opened = _copy(model).eval()
    pairs = list(zip(model.modules(), opened.modules(), strict=True))
    made = {id(inner): plain[id(module)].eval() for module, inner in pairs if id(module) in plain}
    made |= {id(inner): LayeredAttention(inner) for _, inner in pairs if _opens(inner)}  # type: ignore[arg-type]
    if id(opened) in made:
        return made[id(opened)]
    places = [(path, made[id(inner)]) for path, inner in opened.named_modules(remove_duplicate=False) if id(inner) in made]
    for path, module in reversed(places):  # what is inside another one first
        opened.set_submodule(path, module)
    return opened


def _copy(module: nn.Module) -> Any:
    """A copy that shares parameters, buffers and tensors that hooks made."""
    return copy.deepcopy(module, {id(part): part for part in (*module.parameters(), *module.buffers(), *_made_by_hooks(module))})


def _made_by_hooks(module: nn.Module) -> list[Tensor]:
    return [value for each in module.modules() for value in vars(each).values() if isinstance(value, Tensor)]


def _opens(module: nn.Module) -> bool:
    if not isinstance(module, nn.MultiheadAttention) or type(module).forward is not nn.MultiheadAttention.forward:
        return False
    square = module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn
    return square and not _hooks(module) and not parametrize.is_parametrized(module)


def _hooks(module: nn.Module) -> list[Callable]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *module._backward_hooks.values()]


COMPUTING_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""The hooks with which PyTorch computes a weight before each pass."""


class SamePadded(nn.Conv2d):
    """A convolution that pads its input itself, as TensorFlow does: there are size / stride positions, rounded up.

    Examples
    --------
    >>> SamePadded(3, 4, 3, stride=2)(torch.zeros(1, 3, 7, 8)).shape
    torch.Size([1, 4, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of the padded images."""
        amounts: list[int] = []
        for axis in (1, 0):
            size, stride = input.shape[2 + axis], self.stride[axis]
            missing = max((math.ceil(size / stride) - 1) * stride + self.dilation[axis] * (self.kernel_size[axis] - 1) + 1 - size, 0)
            amounts += [missing // 2, missing - missing // 2]
        return self._conv_forward(F.pad(input, amounts), self.weight, self.bias)


class _Weights(TorchFunctionMode):
    """The weights that convolutions and linear functions are called with."""

    FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear)

    def __init__(self):
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in self.FUNCTIONS:
            self.seen.append(kwargs["weight"] if "weight" in kwargs else args[1])
        return func(*args, **kwargs)


def plain_layer(module: nn.Module) -> nn.Module | None:
    """A layer of PyTorch's own type, or one that pads as TensorFlow does, with the weight that a layer computes at every pass.

    The weight has to be the same for all images.

    Parameters
    ----------
    module
        Any module; it stays as it is.

    Returns
    -------
    nn.Module or None
        The layer, which shares the bias; None where `module` is no convolution or linear layer, uses its weight as it is, has other
        hooks than those that compute it, or does more in evaluation mode.

    Examples
    --------
    >>> class Centred(nn.Linear):
    ...     def forward(self, x):
    ...         return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)
    >>> centred = Centred(3, 4)
    >>> plain = plain_layer(centred)
    >>> plain, plain_layer(nn.Linear(3, 4)), float(plain.weight.detach().mean(1).abs().max()) < 1e-6
    (Linear(in_features=3, out_features=4, bias=True), None, True)

    References
    ----------
    Weight standardization: Qiao et al. 2019.
    """
    kind, own = type_with_entry(module), module._parameters
    if (
        kind is None
        or (inherits_forward(module) and "weight" in own)
        or not all(isinstance(each, COMPUTING_HOOKS) for each in _hooks(module))
    ):
        return None
    settled = _settled(module)
    weight, images, outputs = _tried(settled)
    if weight is None or weight is settled._parameters.get("weight"):
        return None
    values = {"weight": weight, "bias": own.get("bias", settled.bias)}
    for each in (kind, SamePadded) if kind is nn.Conv2d else (kind,):
        plain = _with_parameters(module, each, values)
        with torch.no_grad():
            pairs = [(plain(image), output) for image, output in zip(images, outputs, strict=True)]
        if all(one.shape == other.shape and torch.allclose(one, other) for one, other in pairs):
            return plain
    return None


def _settled(module: nn.Module) -> Any:
    """A copy in evaluation mode, whose passes change nothing of the module."""
    return copy.deepcopy(module, {id(part): part.detach() for part in _made_by_hooks(module)}).eval()


def used_weight(module: Any) -> Tensor:
    """The weight that a convolution or linear layer multiplies its input by; its parameter where that is another for each image.

    Parameters
    ----------
    module
        The layer; it stays as it is.

    Returns
    -------
    Tensor
        Shaped like the layer's own weight, without a gradient.

    Examples
    --------
    >>> class Doubled(nn.Linear):
    ...     def forward(self, x):
    ...         return F.linear(x, 2 * self.weight)
    >>> layer = Doubled(3, 4)
    >>> torch.equal(used_weight(layer), 2 * layer.weight)
    True
    """
    if inherits_forward(module):
        return module.weight.detach()
    weight = _tried(_settled(module))[0]
    return (module.weight if weight is None else weight).detach()


def _tried(module: Any) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
    """The weight with which a layer calls one function of PyTorch for noise of two sizes, the noise and the outputs."""
    layer = layer_of(module)
    if layer is None:
        return None, [], []
    windows = zip(layer.stride, layer.dilation, layer.kernel, strict=True)
    sizes = [2 * stride + dilation * (size - 1) + 1 for stride, dilation, size in windows]
    source = torch.Generator().manual_seed(0)
    images = [torch.randn(1, layer.in_channels, *(size + more for size in sizes), generator=source).to(module.weight) for more in (0, 1)]
    try:
        with torch.no_grad(), _Weights() as weights:
            outputs = [module(image) for image in images]
    except FAILURES as error:  # it takes more than one input, or none of these
        no_lack_of_memory(error)
        return None, [], []
    found = weights.seen
    fits = len(found) == len(images) and found[0].shape == module.weight.shape and found[0].equal(found[1])
    return (found[0] if fits else None), images, outputs


def _with_parameters(module: nn.Module, kind: type[nn.Module], values: dict[str, Any]) -> nn.Module:
    """A layer of a type with the settings of a layer of a subtype, and new parameters where values are none of its own."""
    plain = _copy(module)
    plain.__class__ = kind
    learned = any(part.requires_grad for part in module.parameters())
    parameters = {
        name: value if value is None or isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone(), requires_grad=learned)
        for name, value in values.items()
    }
    plain._parameters, plain._buffers, plain._modules = parameters, {}, {}
    plain._forward_pre_hooks.clear()
    for name in parameters:
        vars(plain).pop(name, None)
    return plain
