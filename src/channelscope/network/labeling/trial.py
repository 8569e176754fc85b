"""Trial: the labeled graph of a network, and what only trying tells of it."""

import copy

import torch
from torch import Tensor, nn

from channelscope.network.labeling.labeled_graph import Heads, LabeledGraph
from channelscope.network.labeling.labels import numbers_in
from channelscope.network.labeling.narrowing import UnfitError, correct, cut, references
from channelscope.network.labeling.removal import Removal
from channelscope.network.operations import of_module
from channelscope.network.tracing.recording import one_step, record

TRIALS = 100
"""Most trials; each that fails keeps more channels whole."""


def single(module: nn.Module) -> bool:
    """Whether a module is one step of a recording: a layer of torch, or a type that has been registered.

    Examples
    --------
    >>> single(nn.ReLU()), single(nn.Sequential(nn.ReLU()))
    (True, False)
    """
    entry = of_module(module)
    return one_step(module) or (entry is not None and type(module) in entry.modules and not type(module).__module__.startswith("torch."))


def labeled_graph(model: nn.Module, example: Tensor | tuple[Tensor, ...], heads: Heads = "whole") -> LabeledGraph:
    """The channels of a network: which go together, which cannot be removed and why.

    What cannot be removed so that the smaller network computes what the silenced one computes is kept whole. That is
    tried: half of the groups are removed, then the others, and a step that does not follow keeps its channels.

    Parameters
    ----------
    model
        The network; it is neither changed nor needs gradients.
    example
        A batch of at least one image, or all inputs of the network.
    heads
        What attention can be narrowed by: whole heads, or one width in every head.

    Returns
    -------
    LabeledGraph
        Its `groups`, `whole`, `layers` and `macs`.

    Raises
    ------
    TracingError
        If the forward pass cannot be recorded.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1)).eval()
    >>> found = labeled_graph(net, torch.zeros(1, 3, 5, 5))
    >>> found.groups
    ((('0', 0),), (('0', 1),))
    >>> found.whole
    {'2': '4 of 4 channels: its values are outputs of the network'}
    """
    source = torch.Generator().manual_seed(0)
    inputs = example if isinstance(example, tuple) else (example,)
    image = tuple(
        torch.randn(1, *part.shape[1:], generator=source).to(part) if part.is_floating_point() and part.dim() > 1 else part[:1]
        for part in inputs
    )
    graph = LabeledGraph(record(model, image, whole=single), model, heads)
    try_out(graph)
    return graph


def try_out(graph: LabeledGraph) -> None:
    """Remove half of the groups, then the others; channels of steps that do not follow are kept whole.

    Examples
    --------
    >>> from channelscope.network.labeling.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> try_out(graph)  # everything follows, so nothing is kept whole besides the outputs
    >>> list(graph.whole)
    ['3']
    """
    coin = torch.rand(len(graph.union.parent), generator=torch.Generator().manual_seed(0)) < 0.5
    side = 0
    for _ in range(TRIALS):
        removal = Removal(graph, half(graph, coin if side == 0 else ~coin))
        small = copy.deepcopy(graph.model)
        cut(small, graph, removal)
        _, whole, silent, _ = references(graph, removal)
        try:
            correct(graph, removal, small.double().eval(), whole, silent)
        except UnfitError as error:
            labels = [graph.labels[node] for node in (*error.node.all_input_nodes, error.node)]
            graph.keep(numbers_in(labels), str(error))
            continue
        side += 1
        if side == 2:
            return


def half(graph: LabeledGraph, coin: Tensor) -> Tensor:
    """Marks of the groups whose coin fell on one side; no layer loses all its inputs or outputs.

    Examples
    --------
    >>> from channelscope.network.labeling.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> half(graph, torch.tensor([True, False, False, True])).tolist()  # channel 3 is the network's output
    [True, False, False, False]
    """
    roots = graph.union.roots(torch.arange(len(coin)))
    removable = torch.tensor([not graph.union.reason(number) for number in range(len(coin))], dtype=torch.bool)
    marks = coin[roots] & removable
    sets = [numbers for layer in graph.layers for numbers in (layer.inputs, layer.outputs) if bool((numbers >= 0).all())]
    sets += [torch.tensor(numbers) for numbers in graph.parts]
    while True:
        empty = [numbers for numbers in sets if bool(marks[numbers].all())]
        if not empty:
            return marks
        marks &= ~torch.isin(roots, torch.stack([roots[numbers[0]] for numbers in empty]))
