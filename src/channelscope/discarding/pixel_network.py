"""PixelNetwork: a network whose input is pixels of 0 to 1, run up to one layer at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from channelscope.discarding.jacobian import FeatureFunction
from channelscope.errors import InputError, SiteError, no_such
from channelscope.network.graph import Graph, trace
from channelscope.types import Float, Tensor

N_SPACED_LAYERS = 4
"""default number of layers"""


@dataclass(frozen=True)
class LayerOutput:
    """A layer as a step of the traced pass."""

    name: str
    """module path, for the module's output, or the name of a step"""
    step: str
    """name of the step whose value is the feature"""
    depth: int
    """position of the step in execution order"""


class PixelNetwork:
    """A network whose inputs are pixels of 0 to 1; normalization is part of it, so that networks can be compared.

    Parameters
    ----------
    model
        Network in evaluation mode, whose inputs are normalized images.
    shape
        Channels, height, width of an image.
    mean, std
        Normalization of each channel.
    device
        Device of the network.

    Examples
    --------
    >>> network = PixelNetwork(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), (1, 4, 4), [0.5], [0.25])
    >>> network.layers(["1", "0"])
    [LayerOutput(name='0', step='_0', depth=1), LayerOutput(name='1', step='_1', depth=2)]
    >>> network.denormalize(torch.tensor([[[[2.0]]]])).item()
    1.0
    """

    def __init__(self, model: nn.Module, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], device: str = "cpu"):
        """Trace the network on an image of zeros."""
        self.mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).view(-1, 1, 1)
        self.shape = tuple(shape)
        self.graph: Graph = trace(model, torch.zeros(1, *shape, device=device))
        self.depths = {node.name: place for place, node in enumerate(self.graph.steps.nodes)}

    def denormalize(self, images: Float[Tensor, "images C H W"]) -> Float[Tensor, "images C H W"]:
        """Normalized images in pixels of 0 to 1, on the network's device."""
        return images.to(self.mean.device) * self.std + self.mean

    def layer_value(self, layer: LayerOutput) -> FeatureFunction:
        """The function from pixels of 0 to 1 to a layer's value; it keeps gradients."""
        return lambda pixels: self.graph.run((pixels - self.mean) / self.std, outputs=layer.step, out_of_place=True)

    def layer_values(self, pixels: Float[Tensor, "images C H W"], layer_outputs: Sequence[LayerOutput]) -> tuple[Tensor, ...]:
        """The values of several layers from one pass without gradients."""
        with torch.no_grad():
            return self.graph.run((pixels - self.mean) / self.std, outputs=tuple(layer.step for layer in layer_outputs), out_of_place=True)

    def layers(self, names: Iterable[str] = ()) -> list[LayerOutput]:
        """Layers by name, in execution order.

        Parameters
        ----------
        names
            Module paths or names of steps; without names, N_SPACED_LAYERS evenly spaced steps that no branch bypasses are taken.

        Raises
        ------
        SiteError
            For a name that is neither, with near matches.
        InputError
            If two names are the same step.
        """
        names = list(names)
        if not names:
            return self._spaced()
        found = [self._layer(name) for name in names]
        if len({layer.step for layer in found}) < len(found):
            raise InputError(f"expected different layers, received two that are the same place: {', '.join(names)}")
        return sorted(found, key=lambda layer: layer.depth)

    def _layer(self, name: str) -> LayerOutput:
        steps = [node for node in self.graph.steps.nodes if name == node.name or name in _module_outputs(node)]
        if not steps or steps[-1].name not in self.graph.shapes:
            known = {path for node in self.graph.steps.nodes for path in _module_outputs(node)} | set(self.graph.shapes)
            raise SiteError(no_such("layer", name, sorted(known)))
        return LayerOutput(name, steps[-1].name, self.depths[steps[-1].name])

    def _spaced(self) -> list[LayerOutput]:
        """Evenly spaced steps with a map as value that no branch bypasses, modules before functions; with the first and the last."""
        nodes = list(self.graph.steps.nodes)
        last = {node.name: max((self.depths[user.name] for user in node.users), default=0) for node in nodes}
        reach, narrow = 0, []
        for place, node in enumerate(nodes):
            if reach <= place and node.op not in ("placeholder", "output", "get_attr") and len(self.graph.shapes.get(node.name, ())) == 4:
                narrow.append(node)
            reach = max(reach, last[node.name] if node.op != "get_attr" and node.name in self.graph.shapes else 0)
        if not narrow:
            raise SiteError("every step of the network has a parallel branch or no map: name the layers")
        modules = [node for node in narrow if self._name(node) in _module_outputs(node)]
        narrow = modules if len(modules) >= N_SPACED_LAYERS else narrow
        chosen = {round(part * (len(narrow) - 1) / (N_SPACED_LAYERS - 1)) for part in range(N_SPACED_LAYERS)}
        return [LayerOutput(self._name(narrow[place]), narrow[place].name, self.depths[narrow[place].name]) for place in sorted(chosen)]

    def _name(self, node: fx.Node) -> str:
        """The shortest module path whose output this step is, or the step's own name."""
        for path in sorted(_module_outputs(node), key=len):
            if self._layer(path).step == node.name:
                return path
        return node.name


def _module_outputs(node: fx.Node) -> list[str]:
    """Paths of the modules that a step is part of."""
    return [path for path in (str(part) for part in node.meta.get("nn_module_stack", {})) if path]
