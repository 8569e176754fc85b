"""SensitivityEstimator: Monte Carlo estimates of how a layer's feature responds to noise; PixelNetwork: the network up to that layer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from channelscope.discarding.noise import Cells
from channelscope.errors import InputError, NumericError, SiteError, no_such
from channelscope.network.graph import Graph, trace
from channelscope.types import Bool, Float, Int, Tensor

FeatureFunction = Callable[[Tensor], Tensor]
"""a network up to one layer: images (B, C, H, W) → features (B, …), differentiable, image by image"""

ORTHOGONAL_PROBES_UP_TO = 128
"""size of a feature up to which the probes are the rows of a random orthogonal matrix: one cycle of them gives the exact Jacobian"""

PROBE_STREAM = 2**31
"""number of the draw that gives the orthogonal matrix"""

N_SPACED_LAYERS = 4
"""default number of layers"""


@dataclass(frozen=True)
class PerImageRandom:
    """Random generators that depend on the seed, the image and the draw alone, not on batch size, order or layer.

    Examples
    --------
    >>> together, alone = PerImageRandom(0, torch.tensor([7, 9])), PerImageRandom(0, torch.tensor([9]))
    >>> torch.equal(standard_normal(together.generators(4), (5,))[1:], standard_normal(alone.generators(4), (5,)))
    True
    """

    seed: int
    """seed of the run"""
    index: Int[Tensor, "images"]
    """index of each image in its data set"""

    def generators(self, draw: int) -> list[torch.Generator]:
        """One generator per image for one draw, the draws being numbered from 0."""
        states = [np.random.SeedSequence([self.seed, int(index), draw]).generate_state(1, np.uint64)[0] for index in self.index]
        return [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]


def standard_normal(generators: list[torch.Generator], shape: Iterable[int]) -> Tensor:
    """Standard normal numbers, one array per image.

    Parameters
    ----------
    generators
        One generator per image.
    shape
        Shape of an image's array.

    Returns
    -------
    Tensor
        Arrays of that shape, stacked along a first axis (images).

    Examples
    --------
    >>> standard_normal(PerImageRandom(0, torch.arange(2)).generators(0), (3, 4)).shape
    torch.Size([2, 3, 4])

    References
    ----------
    torch.randn.
    """
    return torch.stack([torch.randn(tuple(shape), generator=one) for one in generators])


def rademacher(generators: list[torch.Generator], size: int) -> Tensor:
    """Random signs ±1 (Rademacher), one row per image.

    Parameters
    ----------
    generators
        One generator per image.
    size
        Number of signs of an image.

    Returns
    -------
    Tensor
        Signs (images, size) in float32.

    Examples
    --------
    >>> rademacher(PerImageRandom(0, torch.arange(2)).generators(0), 3).abs().tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]

    References
    ----------
    Hutchinson 1990.
    """
    return torch.stack([torch.randint(0, 2, (size,), generator=one) for one in generators]).float() * 2 - 1


@dataclass(frozen=True)
class NoiseSamples:
    """Samples from noisy passes over a batch of images; `+` joins the samples of two calls."""

    response: Float[Tensor, "draws images"]
    """|f(x + σe) − f(x)|² of each draw"""
    spent: Float[Tensor, "draws images"]
    """derivative ½ d|Δf|²/d ln σ over all cells; equal to the response for a linear feature; no rows without `curvature`"""
    sensitivity: Float[Tensor, "probes images cells"]
    """squared norms of the Jacobian's columns at the noisy image, summed over each cell's values (one unbiased sample a probe)"""
    effective: Float[Tensor, "draws images cells"]
    """effective sensitivity γ_i = ½ ∂E|Δf|²/∂ln σ_i / σ_i² (one unbiased sample a draw); no rows without `curvature`"""

    def __add__(self, other: "NoiseSamples") -> "NoiseSamples":
        """The samples of both."""
        return NoiseSamples(*(torch.cat([vars(self)[name], vars(other)[name]]) for name in vars(self)))

    @property
    def without_responses(self) -> "NoiseSamples":
        """The squared Jacobian norms alone."""
        return NoiseSamples(self.response[:0], self.spent[:0], self.sensitivity, self.effective[:0])


class SensitivityEstimator:
    """Monte Carlo estimates of a layer's response to pixel noise for one batch of images; forward and backward passes are counted.

    Parameters
    ----------
    feature
        Network up to the layer.
    images
        Images (images, C, H, W) in pixels of 0 to 1.
    cells
        Cells that share one noise level.
    varies
        Values (C, H, W) that get noise.
    random
        Random numbers of the images.

    Raises
    ------
    NumericError
        If the feature of the clean images is not finite.

    Examples
    --------
    A linear feature: the squared norms of the Jacobian's columns are known after one cycle of probes.

    >>> images = torch.zeros(1, 1, 1, 2)
    >>> everywhere, random = torch.ones(1, 1, 2) > 0, PerImageRandom(0, torch.arange(1))
    >>> estimator = SensitivityEstimator(lambda x: x.flatten(1) * torch.tensor([1.0, 3.0]), images, Cells.of((1, 2)), everywhere, random)
    >>> samples = estimator.jacobian_sample(torch.full((1, 2), 0.1), draw=0, probes=2)
    >>> samples.sensitivity.mean(0).round(decimals=3).tolist()
    [[1.0, 9.0]]

    References
    ----------
    Hutchinson 1990 (random probes), Stein 1981 (mean Jacobian).
    """

    def __init__(
        self,
        feature: FeatureFunction,
        images: Float[Tensor, "images C H W"],
        cells: Cells,
        varies: Bool[Tensor, "C H W"],
        random: PerImageRandom,
    ):
        """Run the clean images once."""
        self.feature = feature
        self.images = images
        self.cells = cells
        self.varies = varies.to(images)
        self.values = cells.sum_by_cell(self.varies.sum(0))
        self.random = random
        self.passes = 0
        with torch.no_grad():
            self.clean = self._forward(images)
        if not bool(self.clean.isfinite().all()):
            raise NumericError("the feature of the clean images is not finite: check the network and the normalization of its images")
        self.size = self.clean.shape[1]
        self._basis = _orthogonal(random.generators(PROBE_STREAM), self.size) if self.size <= ORTHOGONAL_PROBES_UP_TO else None
        self._outer: Tensor | float = 0.0
        self._probes = 0
        self.mean_jacobian: Tensor | None = (
            None  # mean Jacobian (B, size, C, H, W) at noisy images, after a full cycle of orthogonal probes
        )
        self.nonlinear_fraction: Tensor | None = (
            None  # fraction of |Δf|² (B,) that it does not predict in the draw after which it was known
        )

    def response(self, sigma: Float[Tensor, "images cells"], draw: int) -> Float[Tensor, "images"]:
        """An unbiased sample of E|f(x + σe) − f(x)|² for each image, from one pass.

        Where the mean Jacobian J is known, |Jσe|² is replaced by its mean Σ σ² |J_i|² (a control variate; the sample of a linear
        feature is exact).

        Parameters
        ----------
        sigma
            Standard deviation of the noise in each cell, in pixels of 0 to 1.
        draw
            Number of the noise: equal numbers give equal noise.
        """
        with torch.no_grad():
            noise, _ = self._noise(sigma, self.random.generators(draw))
            return self._controlled_response(self._forward(self.images + noise) - self.clean, noise, sigma)

    def _controlled_response(self, change: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        size = change.square().sum(1)
        return (
            size
            if self.mean_jacobian is None
            else size - self._linear_prediction(noise).square().sum(1) + (sigma.square() * self._jacobian_columns()).sum(1)
        )

    def _linear_prediction(self, noise: Tensor) -> Tensor:
        """Change of the feature as the mean Jacobian predicts it."""
        return torch.einsum("bdchw,bchw->bd", self.mean_jacobian, noise)

    def _jacobian_columns(self) -> Tensor:
        """Squared norms of the mean Jacobian's columns, summed over each cell's values."""
        assert self.mean_jacobian is not None
        return self.cells.sum_by_cell((self.mean_jacobian.square().sum(1) * self.varies).sum(1))

    def jacobian_sample(self, sigma: Float[Tensor, "images cells"], draw: int, probes: int = 1, curvature: bool = False) -> NoiseSamples:
        """Response and squared Jacobian norms at the noise of one draw: one forward pass, `probes` backward passes.

        A sample of the squared norms is (J'v)² at the noisy image for a random v of mean square 1 in feature space. v has random
        signs; where the feature has at most ORTHOGONAL_PROBES_UP_TO numbers it is a row of a random orthogonal matrix.

        Parameters
        ----------
        sigma
            Standard deviation of the noise in each cell, in pixels of 0 to 1.
        draw
            Number of the noise: equal numbers give equal noise.
        probes
            Vectors v for each image.
        curvature
            Also sample the effective sensitivities, by one more backward pass.
        """
        generators = self.random.generators(draw)
        noisy, unit, feature = self._noisy(sigma, generators)
        squares = torch.stack([self._jacobian_square(feature, noisy, generators) for _ in range(probes)])
        change = (feature - self.clean).detach()
        if self.mean_jacobian is not None and self.nonlinear_fraction is None:
            apart = change - self._linear_prediction((noisy - self.images).detach())
            self.nonlinear_fraction = apart.square().sum(1) / change.square().sum(1).clamp(min=torch.finfo(change.dtype).tiny)
        spent, effective = (
            self._effective_sensitivity(sigma, unit, feature, noisy, change) if curvature else (sigma[None, :, 0][:0], sigma[None][:0])
        )
        response = self._controlled_response(change, (noisy - self.images).detach(), sigma)
        return NoiseSamples(response[None], spent, squares, effective)

    def _jacobian_square(self, feature: Tensor, noisy: Tensor, generators: list[torch.Generator]) -> Tensor:
        vector = rademacher(generators, self.size) if self._basis is None else self._basis[:, self._probes % self.size]
        pullback = self._backward(feature, noisy, vector.to(feature)) * self.varies
        if self._basis is not None:
            self._outer = self._outer + vector[:, :, None, None, None].to(pullback) * pullback[:, None]
            self._probes += 1
            if self._probes % self.size == 0:
                self.mean_jacobian = self._outer / self._probes  # the best linear predictor of the response (Stein)
        return self.cells.sum_by_cell(pullback.square().sum(1))

    def effective_sample(self, sigma: Float[Tensor, "images cells"], draw: int, mirrored: bool = False) -> NoiseSamples:
        """Response and effective sensitivities at the noise of one draw: one forward and one backward pass.

        Parameters
        ----------
        sigma
            Standard deviation of the noise in each cell, in pixels of 0 to 1.
        draw
            Number of the noise: equal numbers give equal noise.
        mirrored
            Take the noise −e instead of e.
        """
        noisy, unit, feature = self._noisy(sigma, self.random.generators(draw), -1 if mirrored else 1)
        change = (feature - self.clean).detach()
        spent, effective = self._effective_sensitivity(sigma, unit, feature, noisy, change)
        response = self._controlled_response(change, (noisy - self.images).detach(), sigma)
        return NoiseSamples(response[None], spent, sigma[None][:0], effective)

    def _effective_sensitivity(self, sigma: Tensor, unit: Tensor, feature: Tensor, noisy: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Samples of ½ ∂E|Δf|²/∂ln σ_i = E σ_i e_i (J'Δf)_i; the mean Jacobian is a control variate as in `response`."""
        slope = self._backward(feature, noisy, change)
        if self.mean_jacobian is not None:
            predicted = self._linear_prediction((noisy - self.images).detach())
            slope = slope - torch.einsum("bdchw,bd->bchw", self.mean_jacobian, predicted)
        effective = self.cells.sum_by_cell((slope * unit * self.varies).sum(1)) / sigma.where(sigma > 0, torch.inf)
        if self.mean_jacobian is not None:
            effective = effective + self._jacobian_columns()
        return (effective * sigma.square()).sum(1)[None], effective[None]

    def _noisy(self, sigma: Tensor, generators: list[torch.Generator], sign: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        noise, unit = self._noise(sigma, generators)
        noisy = (self.images + sign * noise).requires_grad_()
        return noisy, sign * unit, self._forward(noisy)

    def _noise(self, sigma: Tensor, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        unit = standard_normal(generators, self.images.shape[1:]).to(self.images)
        return self.cells.expand_to_pixels(sigma)[:, None] * self.varies * unit, unit

    def _forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return self.feature(images).flatten(1)

    def _backward(self, feature: Tensor, images: Tensor, vector: Tensor) -> Tensor:
        self.passes += 1
        return torch.autograd.grad(feature, images, vector, retain_graph=True)[0]


def _orthogonal(generators: list[torch.Generator], size: int) -> Tensor:
    """Random orthogonal matrices, one per image, rows of mean square 1."""
    return torch.linalg.qr(standard_normal(generators, (size, size)))[0] * size**0.5


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
            paths = [path for node in self.graph.steps.nodes for path in _module_outputs(node)]
            raise SiteError(no_such("layer", name, dict.fromkeys((*paths, *self.graph.shapes))))
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
