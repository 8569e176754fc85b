"""Products of two tensors, einsum and attention."""

from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from channelscope.network.operations.elementwise import met, pairs_of
from channelscope.network.operations.mixing import Mix, mix
from channelscope.network.operations.operation import Operation, names, register
from channelscope.network.operations.step import Operand, Step, executed, kept_whole
from channelscope.network.removal.labels import FIXED, FREE, PARAMETERS, channels_in, compact, full, varying


def contracted(step: Step, a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Labels of the matrix product of (…, m, k) and (…, k, n).

    What is summed over need not be told apart afterwards: position j of one side goes with position j of the other. Where
    several rows are labeled too, as in the heads of attention, either all positions of a row go together (whole heads) or
    the same position of every row (widths).

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="1"))))
    >>> rows, columns = torch.tensor([[0], [1]]), torch.full((1, 2), FIXED)
    >>> contracted(step, rows, columns, (2, 2)).tolist()
    [[0, 0], [1, 1]]
    """
    rows, columns = compact(a), compact(b)
    if rows.shape[-1] > 1 or columns.shape[-2] > 1:
        several = any(size > 1 for size in (*rows.shape[:-2], *columns.shape[:-2]))
        inside = (rows.shape[-2] > 1 and rows.shape[-1] > 1) or (columns.shape[-2] > 1 and columns.shape[-1] > 1)
        if (several and step.walk.heads == "whole") or inside:
            why = f"{step.place} sums over them together"
            step.walk.together(rows, [-1], why)
            step.walk.together(columns, [-2], why)
            rows, columns = (_roots(step, part) for part in (rows, columns))
        else:
            _matched(step, a, b)
    left, right = rows.amax(-1, keepdim=True), columns.amax(-2, keepdim=True)
    if rows.shape[-1] > 1:
        left = _where_same(rows, -1)
    if columns.shape[-2] > 1:
        right = _where_same(columns, -2)
    left, right = (torch.where(part >= PARAMETERS, FIXED, part) for part in (left, right))
    return _outer(step, left, right).expand(shape)


def _roots(step: Step, labels: Tensor) -> Tensor:
    return torch.where(channels_in(labels), step.walk.union.roots(labels), labels)


def _where_same(labels: Tensor, axis: int) -> Tensor:
    """The number along an axis where there is only one, else FIXED."""
    high = labels.amax(axis, keepdim=True)
    low = torch.where(labels == FREE, high, labels).amin(axis, keepdim=True)
    return torch.where(high == low, high, FIXED)


def _matched(step: Step, a: Tensor, b: Tensor) -> None:
    """Position j of the rows goes with position j of the columns."""
    union = step.walk.union
    size = a.shape[-1]
    why = f"{step.place} sums over them together"
    sides = []
    for part, axis in ((a, -1), (b, -2)):
        short = compact(part).movedim(axis, -1)
        sides.append(short.expand(*short.shape[:-1], size).flatten(0, -2))
    for column in torch.cat(sides).T:
        union.unite_all(column, why)
        step.walk.adopt(column, why)


def _outer(step: Step, left: Tensor, right: Tensor) -> Tensor:
    """Labels of rows and columns combined; a row's channel takes the columns that it alone meets with it."""
    union = step.walk.union
    size = max(left.dim(), right.dim())
    left, right = (_roots(step, part.reshape((1,) * (size - part.dim()) + tuple(part.shape))) for part in (left, right))
    x, y = torch.broadcast_tensors(left, right)
    pairs = pairs_of(x, y)
    both = pairs[:, channels_in(pairs[0]) & channels_in(pairs[1]) & (pairs[0] != pairs[1])]
    if both.shape[1]:
        most = [int(part.unique(return_counts=True)[1].max()) for part in both]
        if min(most) == 1:
            for one, other in both.T.tolist():
                union.unite(one, other, f"{step.place} combines them")
        else:
            step.hold(f"{step.place} combines each with several others", both[0])
            x, y = y, x
    return torch.where(channels_in(x), x, y)


def _matmul(step: Step) -> Tensor:
    first, second = step.node.all_input_nodes[0], _second(step)
    value = step.value
    a, b = step.walk.labels[first], step.walk.labels[second]
    if b.dim() == 2 and second not in step.walk.dynamic and first in step.walk.dynamic and bool((compact(b) >= PARAMETERS).any()):
        path = str(second.target) if second.op == "get_attr" else None
        weight = Operand(step.walk.values[second.name], path, second)
        return mix(step, Mix(value.dim() - 1, 1, 0, positions=value.numel() // max(value.shape[-1], 1), linear=True), weight, None)
    if min(a.dim(), b.dim()) < 2:
        step.hold(f"{step.place} is a product with a vector")
        return full(tuple(value.shape))
    return contracted(step, a, b, tuple(value.shape))


def _second(step: Step) -> fx.Node:
    if len(step.node.args) > 1:
        return step.node.args[1]  # type: ignore[return-value]
    return next(step.node.kwargs[name] for name in ("other", "mat2", "tensor2") if name in step.node.kwargs)  # type: ignore[return-value]


def _added(step: Step) -> Tensor:
    """input + first @ second."""
    added, first, second = (step.walk.labels[step.argument(name)] for name in ("input", "batch1", "batch2"))
    if not isinstance(added, Tensor) or step.argument("batch2") not in step.walk.dynamic:
        return kept_whole(step)
    return met(step.walk, contracted(step, first, second, tuple(step.value.shape)), added, step).expand(step.value.shape)


def _attention(step: Step) -> Tensor:
    """softmax(q kᵀ + mask) v: queries and keys are summed over, values pass."""
    queries, keys, values = (step.labels(name) for name in ("input", "key", "value"))
    grid = (*torch.broadcast_shapes(queries.shape[:-2], keys.shape[:-2]), queries.shape[-2], keys.shape[-2])
    weights = contracted(step, queries, keys.transpose(-1, -2), grid)
    mask = step.argument("attn_mask")
    if isinstance(mask, fx.Node):
        weights = met(step.walk, weights, step.walk.labels[mask], step)
    step.walk.together(weights, [-1], f"{step.place} makes them compete")
    if step.carries(queries) or step.carries(keys):
        step.walk.scaled[step.node] = queries.shape[-1]
    return contracted(step, weights, values, tuple(step.value.shape))


def _sum(step: Step) -> Any:
    """Einstein sums of two tensors, without an ellipsis; what is the same for every image is summed with heads as a whole."""
    walk = step.walk
    equation = str(step.node.args[0]).replace(" ", "")
    parts = step.node.args[1] if isinstance(step.node.args[1], tuple | list) else step.node.args[1:]
    terms, arrow, out = equation.partition("->")
    if not arrow or len(parts) != 2 or "." in equation or not any(part in walk.dynamic for part in parts):
        return kept_whole(step)
    labels = [walk.labels[part] if part in walk.dynamic else full(tuple(walk.labels[part].shape)) for part in parts]
    if any(part not in walk.dynamic and len(varying(labels[1 - place])) < 2 for place, part in enumerate(parts)):
        return kept_whole(step)
    first, second = terms.split(",")
    every = set(first) | set(second)
    single = [letter for letter in every if letter not in out and not (letter in first and letter in second)]
    if single or len(set(first)) < len(first) or len(set(second)) < len(second):
        return kept_whole(step)
    batch = [letter for letter in first if letter in second and letter in out]
    summed = [letter for letter in first if letter in second and letter not in out]
    rows = [letter for letter in first if letter not in second]
    columns = [letter for letter in second if letter not in first]
    sizes = dict(zip(first + second, [size for part in parts for size in walk.values[part.name].shape], strict=True))  # type: ignore[union-attr]
    m, n, k = (prod(sizes[letter] for letter in letters) for letters in (rows, columns, summed))
    heads = [sizes[letter] for letter in batch]
    a = labels[0].permute([first.index(letter) for letter in (*batch, *rows, *summed)]).reshape(*heads, m, k)
    b = labels[1].permute([second.index(letter) for letter in (*batch, *summed, *columns)]).reshape(*heads, k, n)
    result = contracted(step, a, b, (*heads, m, n))
    order = [*batch, *rows, *columns]
    return result.reshape([sizes[letter] for letter in order]).permute([order.index(letter) for letter in out]).expand(step.value.shape)


def _attention_macs(step: Step) -> int:
    queries, keys, values = (step.walk.values[step.argument(name).name] for name in ("input", "key", "value"))
    return queries.numel() * keys.shape[-2] + queries.numel() // queries.shape[-1] * keys.shape[-2] * values.shape[-1]


register(Operation("product", _matmul, functions=names("matmul bmm mm"), arguments=("input", "other"), macs=executed))
register(Operation("added product", _added, functions=names("baddbmm addmm addbmm"), arguments=("input", "batch1", "batch2"),
    macs=executed))  # fmt: skip
register(Operation("einsum", _sum, functions=names("einsum"), macs=executed))
register(Operation("attention", _attention, functions=names("scaled_dot_product_attention"),
    arguments=("input", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale"), macs=_attention_macs))  # fmt: skip
