"""What may change a map and what may not: CID beside gradient and Grad-CAM on a CIFAR-100 network, and randomized weights.

Run from the repository root: python benchmarks/discarding.py   (about a minute; needs ../shared/data and captum)
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor, nn

from channelscope import data, zoo
from channelscope.discarding.cid import CalibrationStatistics, CIDOptions
from channelscope.discarding.faithfulness import attributions
from channelscope.discarding.jacobian import PROBE_STREAM, PerImageRandom, PixelNetwork, SensitivityEstimator, _orthogonal
from channelscope.discarding.noise import Cells
from channelscope.discarding.optimum import OptimalNoise, optimal_noise
from channelscope.formulas.intervals import t_interval

DATA = "../shared/data"
IMAGES, SIDE, SCALE = 8, 16, 4.0


@dataclass
class Bench:
    """Images, and what does not depend on the network's weights."""

    images: data.ImageSplits
    batch: tuple[Tensor, Tensor, Tensor]

    def solved(self, model: nn.Module, change: Callable[[Tensor], Tensor], along: Callable[[Tensor], Tensor] | None = None) -> OptimalNoise:
        """CID of the logits after `change`; `along` changes the probes of the logits in the same way."""
        view = PixelNetwork(model, self.images.image_shape, *self.images.normalization)
        (layer,) = view.layers(["linear"])
        backdrop = CalibrationStatistics.over(view, self.images.calibration, [layer], lambda: None)
        cells, rule = Cells.of((32, 32), SIDE), CIDOptions(side=SIDE)
        features = torch.cat([change(view.layer_values(view.denormalize(part), [layer])[0]) for part, *_ in self.images.calibration])
        variance = type(backdrop.features[0]).of(features)
        cap, varies = rule.caps(backdrop.pixels, cells)
        feature = view.layer_value(layer)
        scene = SensitivityEstimator(
            lambda pixels: change(feature(pixels)), view.denormalize(self.batch[0]), cells, varies, PerImageRandom(0, self.batch[2])
        )
        if along is not None:
            scene._basis = along(_orthogonal(scene.random.generators(PROBE_STREAM), 100))
        return optimal_noise(scene, rule.constraint(variance), cap, "fast")

    def magnitudes(self, model: nn.Module) -> tuple[float, float]:
        """Mean gradient and mean Grad-CAM of the predicted class."""
        target = model(self.batch[0]).argmax(1)
        methods = attributions(model, "layer3")
        return tuple(float(methods[name](self.batch[0], target).mean()) for name in ("gradient", "gradcam"))


def rescaled(model: nn.Module) -> nn.Module:
    """The last layer four times as large: the same decisions."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.linear.weight *= SCALE
        other.linear.bias *= SCALE
    return other


def randomized(model: nn.Module, parts: tuple[str, ...]) -> nn.Module:
    """The same network with the weights of some parts shuffled within each tensor."""
    other, source = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in parts:
            for values in other.get_submodule(part).parameters():
                values.copy_(values.flatten()[torch.randperm(values.numel(), generator=source)].view_as(values))
    return other


def _times(factor: float) -> str:
    return "" if math.isnan(factor) else f"{factor:.2f}"


def main() -> None:
    source = data.ImageSource(f"hf:{DATA}/cifar100", images=500)
    weights = f"{DATA}/weights/cifar100_resnetsmall20.safetensors"
    model, images = zoo.load(f"{DATA}/archs.py:ResNetSmall", source, weights)
    model.requires_grad_(False)
    bench = Bench(images, images.test.batch(torch.arange(IMAGES)))
    same = nn.Identity()
    plain, (gradient, gradcam) = bench.solved(model, same), bench.magnitudes(model)
    large = rescaled(model)
    turn = torch.linalg.qr(torch.randn(100, 100, generator=torch.Generator().manual_seed(1)))[0]
    print(f"{IMAGES} test images, logits (100 numbers), fast mode, data normalizer, κ = 0.1")
    print("| change | largest |ΔCID| [nats] | gradient × | Grad-CAM × |\n|---|---|---|---|")
    rows = {"last layer × 4": (bench.solved(large, same), *bench.magnitudes(large))}
    rows["logits rotated, probes along"] = (bench.solved(model, lambda f: f @ turn.T, lambda b: b @ turn.T), math.nan, math.nan)
    twice = lambda f: f.repeat(1, 2)  # noqa: E731
    rows["logits duplicated, probes along"] = (bench.solved(model, twice, lambda b: b.repeat(1, 1, 2) / 2**0.5), math.nan, math.nan)
    rows["logits duplicated, new probes"] = (bench.solved(model, twice), math.nan, math.nan)
    for name, (found, slope, cam) in rows.items():
        print(f"| {name} | {float((found.cid - plain.cid).abs().max()):.1e} | {_times(slope / gradient)} | {_times(cam / gradcam)} |")
    print("\n| weights shuffled in | Spearman with the map before, mean over images [95 % t interval] | CID change [nats] |\n|---|---|---|")
    again = bench.solved(model, twice)
    everything = ("linear", "layer3", "layer2", "layer1", "conv1")
    for label, other in (
        ("nothing (new probes)", again),
        *((" + ".join(everything[:n]), bench.solved(randomized(model, everything[:n]), same)) for n in (1, 2, 5)),
    ):
        rho = torch.tensor([float(stats.spearmanr(a, b)[0]) for a, b in zip(plain.noise_std, other.noise_std, strict=True)])
        mean, low, high = t_interval(rho)
        change = float((other.cid - plain.cid).mean())
        print(f"| {label} | {mean:.2f} [{low:.2f}, {high:.2f}] | {change:+.2f} |")


if __name__ == "__main__":
    main()
