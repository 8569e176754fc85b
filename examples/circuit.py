"""Which kernels does one channel need? A part of them, run as a network of their own, beside the original."""

import torch

from channelscope import circuits, data, zoo

model, images = zoo.load("resnet20(width=4)", data=data.ImageSource("digits", images=64))
pixels = next(iter(images.calibration))[0]
target = circuits.locate_feature(model, "layer2.0.conv1:3", pixels)
print(f"{target.feature} has {sum(int(marks.sum()) for marks in target.relevant.values()):,} relevant kernels")

saliency = circuits.score_kernels(target, pixels, criterion="gate")
with torch.no_grad():
    whole = target.feature_map(pixels)
    for keep in (0.5, 0.2, 0.1):
        alone = circuits.extract_module(circuits.top_k(saliency, keep), target)
        pair = torch.stack([whole.flatten(), alone(pixels).flatten()])
        print(f"{keep:.0%} of the kernels: correlation with the feature {torch.corrcoef(pair)[0, 1]:.3f}")
