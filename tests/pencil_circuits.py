"""Circuits, slower and less complicated; and networks small enough to follow by hand."""

import itertools
import math

import numpy as np
import torch
from torch import nn

# ---- what a kernel contributes ----------------------------------------------------------------------------------------------


def contribution_maps(x, weight, stride=(1, 1), dilation=(1, 1), padding=(0, 0), groups=1) -> np.ndarray:
    """A[b, o, i]: the map that kernel (o, i) puts into output channel o, before anything is summed."""
    images, inputs, height, width = x.shape
    outputs, per_group, rows, columns = weight.shape
    padded = np.zeros((images, inputs, height + 2 * padding[0], width + 2 * padding[1]))
    padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
    high = (padded.shape[2] - dilation[0] * (rows - 1) - 1) // stride[0] + 1
    wide = (padded.shape[3] - dilation[1] * (columns - 1) - 1) // stride[1] + 1
    maps = np.zeros((images, outputs, per_group, high, wide))
    for o, i in itertools.product(range(outputs), range(per_group)):
        channel = i + per_group * (o // (outputs // groups))
        for u, v in itertools.product(range(high), range(wide)):
            for r, c in itertools.product(range(rows), range(columns)):
                pixel = padded[:, channel, u * stride[0] + r * dilation[0], v * stride[1] + c * dilation[1]]
                maps[:, o, i, u, v] += weight[o, i, r, c] * pixel
    return maps


def gate(maps: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Sum over images of |sum over positions of A·G|."""
    return np.abs((maps * gradients[:, :, None]).sum((3, 4))).sum(0)


def signed_gate(maps: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    return (maps * gradients[:, :, None]).sum((0, 3, 4))


def actgrad(maps: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Sum over images of the mean over positions of |A·G|."""
    return np.abs(maps * gradients[:, :, None]).mean((3, 4)).sum(0)


def snip(model: nn.Module, layer: str, value, images: torch.Tensor, per_batch: bool = False) -> np.ndarray:
    """Sum over images of the kernel's mean |w · dJ/dw|, one backward pass to the weights per image."""
    weight = model.get_parameter(f"{layer}.weight")
    slopes = [torch.autograd.grad(value(model, images[b : b + 1]), weight)[0] for b in range(len(images))]
    products = torch.stack([weight.detach() * slope for slope in slopes]).flatten(3 if weight.dim() > 2 else 2).double().numpy()
    if weight.dim() == 2:
        products = products[..., None]
    return np.abs(products.sum(0)).mean(-1) if per_batch else np.abs(products).mean(-1).sum(0)


def integrated_gates(value, weights, points=400) -> dict:
    """∫ dJ/dm_k ds along gates m = s·(1, …, 1), for one image: J by autograd as a function of one number per kernel.

    `value(weights)` is J with these weights.
    """
    totals = {name: np.zeros(tuple(weight.shape[:2])) for name, weight in weights.items()}
    for point in range(points):
        gates = {
            name: torch.full(tuple(weight.shape[:2]), (point + 0.5) / points, dtype=torch.float64, requires_grad=True)
            for name, weight in weights.items()
        }
        gated = {name: weight * gates[name].view(*weight.shape[:2], *[1] * (weight.dim() - 2)) for name, weight in weights.items()}
        for name, slope in zip(gates, torch.autograd.grad(value(gated), list(gates.values())), strict=True):
            totals[name] += slope.numpy() / points
    return totals


def magnitude(weight: np.ndarray) -> np.ndarray:
    return np.array([[np.mean([abs(w) for w in kernel.ravel()]) for kernel in row] for row in weight])


def schedule(kernels: int, keep: int, rounds: int = 10) -> list[int]:
    """Kernels kept after each round, by multiplying instead of by logarithms."""
    ratio = (keep / kernels) ** (1 / rounds)
    return [math.ceil(kernels * ratio**t - 1e-9) for t in range(1, rounds)] + [keep]


def opening(odds: float, noise: float) -> float:
    s = 1 / (1 + math.exp(-(math.log(noise / (1 - noise)) + odds) / (2 / 3)))
    return min(1.0, max(0.0, s * 1.2 - 0.1))


def openness(odds: float, draws: int = 200_000) -> float:
    """Probability that a gate is not zero, by trying."""
    noise = np.random.default_rng(0).uniform(1e-9, 1 - 1e-9, draws)
    s = 1 / (1 + np.exp(-(np.log(noise / (1 - noise)) + odds) / (2 / 3)))
    return float(np.mean(s * 1.2 - 0.1 > 0))


def fidelity(y: np.ndarray, guess: np.ndarray) -> tuple[float, float]:
    """Pearson's r and normalized squared error."""
    return float(np.corrcoef(y, guess)[0, 1]), float(np.sum((y - guess) ** 2) / np.sum((y - y.mean()) ** 2))


# ---- networks ---------------------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Three convolutions and a linear head."""

    def __init__(self, groups: int = 1):
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=groups)
        self.pool = nn.MaxPool2d(2)
        self.c = nn.Conv2d(4, 3, 1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = self.c(self.pool(torch.relu(self.b(x))))
        return self.head(self.flat(torch.relu(x)))


class Residual(nn.Module):
    """A stem, two blocks with identity and projected shortcut, in-place additions included."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.one, self.two = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.three, self.four = nn.Conv2d(4, 3, 3, padding=1, stride=2), nn.Conv2d(3, 5, 1)
        self.short = nn.Conv2d(4, 5, 1, stride=2)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(5, 2, 3)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        y = self.two(torch.relu(self.one(x)))
        y += x
        x = torch.relu(y)
        x = torch.relu(self.four(torch.relu(self.three(x))) + self.short(x))
        return self.last(x)


class Dense(nn.Module):
    """Every layer reads all that came before; average pooling, then a head on a mean."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.one, self.two = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(5, 2, 3, padding=1)
        self.narrow = nn.Conv2d(7, 4, 1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = torch.relu(self.one(x))
        z = torch.relu(self.two(torch.cat([x, y], 1)))
        x = self.pool(torch.relu(self.narrow(torch.cat([x, y, z], dim=1))))
        return self.head(x.mean((2, 3)))


class Inception(nn.Module):
    """Four branches side by side, twice the same 1×1 layer, a depthwise layer and a channel shuffle."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.point = nn.Conv2d(4, 2, 1)
        self.reduce, self.three = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.shuffle = nn.ChannelShuffle(2)
        self.last = nn.Conv2d(12, 2, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        branches = [self.point(x), self.three(torch.relu(self.reduce(x))), self.depthwise(x), self.pool(x)]
        return self.last(self.shuffle(torch.relu(torch.cat(branches, 1))))


class Gated(nn.Module):
    """Squeeze-and-excitation, a chunk into halves and a normalization over channels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.left, self.right = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
        self.norm = nn.GroupNorm(3, 6)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        left, right = x.chunk(2, dim=1)
        return self.last(torch.relu(self.norm(torch.cat([self.left(left), self.right(right)], 1))))


NETWORKS = {"chain": Chain, "grouped": lambda: Chain(2), "residual": Residual, "dense": Dense, "inception": Inception, "gated": Gated}
LAST = {"chain": "head", "grouped": "c", "residual": "last", "dense": "head", "inception": "last", "gated": "last"}


def network(name: str, seed: int = 0) -> nn.Module:
    """A network of the table above, with normalizations as training leaves them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETWORKS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def pictures(count: int = 5, seed: int = 0, size: int = 8) -> torch.Tensor:
    """Random images with two channels."""
    return torch.randn(count, 2, size, size, generator=torch.Generator().manual_seed(seed))


class Planted(nn.Module):
    """Feature c:0 is relu(a0) − relu(a1) passed through b, nothing else; `truth` marks its kernels.

    Everything else is bait: large kernels that read a channel which is always zero, large kernels whose channel the feature
    weighs with zero, and a channel whose two large inputs cancel on every image.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.truth = {name: torch.zeros(module.weight.shape[:2], dtype=torch.bool) for name, module in self.named_children()}
        for module in (self.a, self.b, self.c):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        with torch.no_grad():
            self._wire("a", 0, 0, 1.0)
            self._wire("a", 1, 1, 1.0)
            self._wire("b", 0, 0, 0.5)
            self._wire("b", 1, 1, 0.5)
            self._wire("c", 0, 0, 1.0)
            self._wire("c", 0, 1, -1.0)
            self.a.weight[2] = 9.0  # bait: channel 2 is always zero …
            self.a.bias[2] = -1e4
            self.b.weight[:, 2] = 9.0  # … and these read it
            self.a.weight[3, 2, 1, 1] = 9.0  # bait: channel 3 feeds only b3, which c:0 does not read
            self.b.weight[3, 3, 1, 1] = 9.0
            self.c.weight[1, 3] = 9.0
            self.c.weight[1, 0] = 9.0  # bait: another feature's kernel

    def _wire(self, layer: str, row: int, column: int, weight: float) -> None:
        module = self.get_submodule(layer)
        middle = module.weight.shape[2] // 2
        module.weight[row, column, middle, middle] = weight
        self.truth[layer][row, column] = True

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Polysemantic(nn.Module):
    """Unit c:0 answers to two causes, each by its own path: a0 → b0 and a1 → b1; c:1 and c:2 tell the causes apart."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        for module in (self.a, self.b, self.c):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        with torch.no_grad():
            for cause in (0, 1):
                self.a.weight[cause, cause, 1, 1] = 1
                self.b.weight[cause, cause] = 1
                self.c.weight[0, cause] = 1
                self.c.weight[1 + cause, cause] = 1
            self.a.weight[2] = 0.01
            self.b.weight[2, 2] = 0.1
            self.c.weight[0, 2] = 0.1

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    def truth(self, cause: int) -> dict[str, torch.Tensor]:
        """Kernels of one cause's path."""
        marks = {name: torch.zeros(module.weight.shape[:2], dtype=torch.bool) for name, module in self.named_children()}
        marks["a"][cause, cause] = marks["b"][cause, cause] = marks["c"][0, cause] = True
        return marks


def causes(count: int = 12, seed: int = 0) -> torch.Tensor:
    """Images of the polysemantic unit: the first half holds one bright pixel in channel 0, the second half in channel 1."""
    source = np.random.default_rng(seed)
    images = np.zeros((count, 2, 8, 8))
    for image in range(count):
        row, column = source.integers(1, 7, 2)
        images[image, image // (count // 2), row, column] = source.uniform(5, 9)
        images[image] += source.uniform(0, 0.2, (2, 8, 8))
    return torch.tensor(images, dtype=torch.float32)
