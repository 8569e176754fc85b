"""PyTorch's multi-head attention with its projections as layers, so that the channels of queries, keys and values can be seen and cut."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize


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
    """The network with its multi-head attention in layers; the network itself where it has none.

    Parameters and buffers are shared with the network; the copy is in evaluation mode. Attention with its own forward pass, hooks,
    projections of several widths, computed weights, or something added to the sequence stays as it is.

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
    if not any(_opens(module) for module in model.modules()):
        return model
    shared: dict[int, Any] = {id(part): part for part in (*model.parameters(), *model.buffers())}
    opened = copy.deepcopy(model, shared).eval()
    if _opens(opened):
        return LayeredAttention(opened)  # type: ignore[arg-type]
    made: dict[int, nn.Module] = {}
    for path, module in list(opened.named_modules(remove_duplicate=False)):
        if _opens(module):
            opened.set_submodule(path, made.setdefault(id(module), LayeredAttention(module)))  # type: ignore[arg-type]
    return opened


def _opens(module: nn.Module) -> bool:
    if not isinstance(module, nn.MultiheadAttention) or type(module).forward is not nn.MultiheadAttention.forward:
        return False
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    square = module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn
    return square and not hooks and not parametrize.is_parametrized(module)
