"""Profiles add: two halves of the images, profiled apart, give the profile of all of them."""

import channelscope
from channelscope import data, zoo

model, images = zoo.load("resnet20", data=data.ImageSource("digits", images=256, batch_size=64))
batches = list(images.calibration)
halves = [channelscope.collect(model, part) for part in (batches[:2], batches[2:])]
both, whole = halves[0] + halves[1], channelscope.collect(model, batches)

site = whole.sites[3]
print(both.images, "images;", site.name)
print(
    "variances differ by at most",
    float((both.record(site).preactivation.variance / whole.record(site).preactivation.variance - 1).abs().max()),
)
