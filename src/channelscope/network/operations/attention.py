"""Attention: torch.nn.MultiheadAttention, and the module that takes its place when heads or widths go."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from channelscope.network.labeling.labels import full
from channelscope.network.operations.mixing import Mix
from channelscope.network.operations.opaque import kept_whole
from channelscope.network.operations.operation import Operation, register
from channelscope.network.operations.step import Step


class NarrowAttention(nn.Module):
    """Attention whose queries, keys and values are narrower than its input; parameters are named as in torch.nn.MultiheadAttention.

    Parameters
    ----------
    old
        The attention whose parameters it takes, already cut.
    heads
        Number of heads.
    scale
        What products of queries and keys are multiplied by: one over the root of the width before anything was cut.
    width
        Number of rows of the queries, and of the keys.
    """

    def __init__(self, old: nn.MultiheadAttention, heads: int, scale: float, width: int):
        super().__init__()
        self.num_heads, self.scale, self.width = heads, scale, width
        self.batch_first, self.dropout = old.batch_first, old.dropout
        self._qkv_same_embed_dim = False  # keeps transformer layers from their fused pass, which assumes square projections
        self.in_proj_bias: nn.Parameter | None
        self.in_proj_weight: nn.Parameter
        self.register_parameter("in_proj_weight", old.in_proj_weight)
        self.register_parameter("in_proj_bias", old.in_proj_bias)
        self.out_proj = old.out_proj
        self.out_proj.out_features, self.out_proj.in_features = old.out_proj.weight.shape

    def forward(
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
        parts = [part if batched else part.unsqueeze(0 if self.batch_first else 1) for part in (query, key, value)]
        sequences = [part if self.batch_first else part.transpose(0, 1) for part in parts]
        rows = [self.width, self.width, self.out_proj.in_features]
        weights = torch.split(self.in_proj_weight, rows)
        biases = (None,) * 3 if self.in_proj_bias is None else torch.split(self.in_proj_bias, rows)
        projected = [F.linear(part, weight, bias) for part, weight, bias in zip(sequences, weights, biases, strict=True)]
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in projected)
        scores = q @ k.transpose(-1, -2) * self.scale
        for mask in self._masks(attn_mask, key_padding_mask, scores):
            scores = scores.masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        attention = F.dropout(scores.softmax(-1), self.dropout, self.training)
        output = self.out_proj((attention @ v).transpose(1, 2).flatten(2))
        output = output if self.batch_first else output.transpose(0, 1)
        shown = (attention.mean(1) if average_attn_weights else attention) if need_weights else None
        if batched:
            return output, shown
        return output.squeeze(0 if self.batch_first else 1), None if shown is None else shown.squeeze(0)

    def _masks(self, mask: Tensor | None, padding: Tensor | None, scores: Tensor) -> list[Tensor]:
        """Masks in the shape (images, heads, queries, keys), or one that spreads to it."""
        found = []
        if mask is not None:
            found.append(mask.unflatten(0, (len(scores), -1)) if mask.dim() == 3 else mask)
        if padding is not None:
            found.append(padding.view(-1, 1, 1, padding.shape[-1]))
        return found


def _labels(step: Step) -> Any:
    """Queries, keys and values are channels of the projection inside; each head goes as a whole, or each width in all heads."""
    module, walk = step.module, step.walk
    assert isinstance(module, nn.MultiheadAttention)
    shown = any(user.args[1:] == (1,) for user in step.node.users)
    if not module._qkv_same_embed_dim or module.bias_k is not None or module.add_zero_attn or shown:
        return kept_whole(step)
    arguments = [step.argument("input"), *(step.positional(place, name) for place, name in ((1, "key"), (2, "value")))]
    read = [
        walk.along(walk.labels[part], -1 % walk.labels[part].dim(), f"{step.place} reads several channels as one") for part in arguments
    ]
    path, width = str(step.node.target), module.embed_dim
    inner = walk.channels(f"{path}.in_proj_weight", f"{path}.in_proj", 3 * width)
    grid = inner.view(3, module.num_heads, module.head_dim)
    why = f"{path} goes by {'whole heads' if walk.heads == 'whole' else 'one width in all heads'}"
    whole = walk.heads == "whole"
    sets = [*grid.movedim(1, 0).flatten(1)] if whole else [*grid[:2].flatten(0, 1).T, *grid[2].T]
    for row in sets:
        walk.union.unite_all(row, why)
    for other in read[1:]:
        for a, b in zip(read[0].tolist(), other.tolist(), strict=True):
            walk.union.unite(a, b, f"{path} reads them with the same weights")
    writes = walk.channels(f"{path}.out_proj.weight", f"{path}.out_proj", width)
    for name, axis, numbers in (
        ("in_proj_weight", 0, inner), ("in_proj_weight", 1, read[0]), ("in_proj_bias", 0, inner),
        ("out_proj.weight", 0, writes), ("out_proj.weight", 1, inner[2 * width :]), ("out_proj.bias", 0, writes),
    ):  # fmt: skip
        step.follow(name, axis, numbers)
    walk.reads[step.node.name] = inner
    output, attention = step.value
    counts = [part[..., 0].numel() for part in (walk.values[node.name] for node in arguments)]
    for name, inputs, outputs, positions in (
        *zip(("q_proj", "k_proj", "v_proj"), read, inner.view(3, -1), counts, strict=True),
        ("out_proj", inner[2 * width :], writes, counts[0]),
    ):
        walk.add_layer(step, f"{path}.{name}", inputs, outputs, Mix(output.dim() - 1, 0, 1, positions=positions, linear=True))
    return step.spread(writes, output.dim() - 1, tuple(output.shape)), None if attention is None else full(tuple(attention.shape))


def _adjust(module: nn.Module, kept: Tensor | None) -> nn.Module | None:
    """The module in a narrower form; `kept` marks what stays of queries, keys and values."""
    assert isinstance(module, nn.MultiheadAttention)
    if kept is None:
        return None
    grid = kept.view(3, module.num_heads, module.head_dim)
    heads = int(grid.any(0).any(1).sum())
    return NarrowAttention(module, heads, module.head_dim**-0.5, int(grid[0].sum()))


def _macs(step: Step) -> int:
    """Projections, products of queries with keys, and of attention with values."""
    module = step.module
    assert isinstance(module, nn.MultiheadAttention)
    query, key = (step.walk.values[node.name] for node in (step.argument("input"), step.positional(1, "key")))
    places, others, width = query[..., 0].numel(), key[..., 0].numel(), module.embed_dim
    images = 1 if query.dim() == 2 else query.shape[0 if module.batch_first else 1]
    return (2 * places + 2 * others) * width**2 + 2 * places * (others // images) * width


register(Operation("multi-head attention", _labels, modules=(nn.MultiheadAttention,), macs=_macs, adjust=_adjust, inner=True))
