"""Fast mode against exact mode on a CIFAR-100 network: CID, maps, seeds, the constraint, passes.

Run from the repository root: python benchmarks/discarding_modes.py   (about two minutes; needs ../shared/data)
"""

import torch
from scipy import stats

from channelscope import data, zoo
from channelscope.discarding.cid import CalibrationStatistics, CIDOptions
from channelscope.discarding.jacobian import PerImageRandom, PixelNetwork, SensitivityEstimator
from channelscope.discarding.noise import Cells
from channelscope.discarding.optimum import OptimalNoise, optimal_noise

DATA = "../shared/data"
IMAGES, SIDE, SEEDS, LAYERS = 4, 16, 3, ("layer1", "layer2", "layer3")


def main() -> None:
    source = data.ImageSource(f"hf:{DATA}/cifar100", images=500)
    model, images = zoo.load(f"{DATA}/archs.py:ResNetSmall", source, f"{DATA}/weights/cifar100_resnetsmall20.safetensors")
    model.requires_grad_(False)
    batch, _, index = images.test.batch(torch.arange(IMAGES))
    view, cells = PixelNetwork(model, images.image_shape, *images.normalization), Cells.of((32, 32), SIDE)
    layers = view.layers(LAYERS)
    backdrop = CalibrationStatistics.over(view, images.calibration, layers, lambda: None)
    print(f"{IMAGES} test images, {SIDE} × {SIDE} cells, fast with {SEEDS} seeds")
    print("| layer | normalizer | exact CID (gap) | |mean fast − exact| | s.d. over seeds | Spearman | ratio fast | ratio exact | passes |")
    print("|---|---|---|---|---|---|---|---|---|")
    for layer, feature in zip(layers, backdrop.features, strict=True):
        for normalizer in ("local", "data"):
            rule = CIDOptions(normalizer=normalizer, side=SIDE)  # type: ignore[arg-type]
            cap, varies = rule.caps(backdrop.pixels, cells)

            def solved(mode: str, seed: int, layer=layer, feature=feature, rule=rule, cap=cap, varies=varies) -> OptimalNoise:
                scene = SensitivityEstimator(view.layer_value(layer), view.denormalize(batch), cells, varies, PerImageRandom(seed, index))
                return optimal_noise(scene, rule.constraint(feature), cap, mode)  # type: ignore[arg-type]

            exact, fast = solved("exact", 99), [solved("fast", seed) for seed in range(SEEDS)]
            cids = torch.stack([each.cid for each in fast])
            maps = [float(stats.spearmanr(each.noise_std[one], exact.noise_std[one])[0]) for each in fast for one in range(IMAGES)]
            ratio = torch.cat([each.constraint_ratio for each in fast])
            print(
                f"| {layer.name} | {normalizer} | {exact.cid.mean():.3f} ({exact.entropy_gap.mean():.4f}) | "
                f"{(cids.mean(0) - exact.cid).abs().mean():.3f} | {cids.std(0).mean():.3f} | "
                f"{sum(maps) / len(maps):.2f} ({min(maps):.2f}) | "
                f"{ratio.mean():.3f} ± {ratio.std() / len(ratio) ** 0.5:.3f} | {exact.constraint_ratio.mean():.3f} ± "
                f"{exact.ratio_error.square().sum().sqrt() / IMAGES:.3f} | {fast[0].passes} / {exact.passes} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
