"""Half the multiply-adds of a small network, without training: try it, do it, repair it, save it, load it again."""

from pathlib import Path
from tempfile import TemporaryDirectory

import channelscope
from channelscope import data, zoo

model, images = zoo.load("resnet20(width=4)", data=data.ImageSource("digits", images=200))
with TemporaryDirectory() as folder:
    schedule = zoo.Schedule(epochs=2, batch_size=64, pad=1, flip=False)
    zoo.train(model, images, Path(folder) / "training", schedule, progress=False)
    found = channelscope.groups(model, next(iter(images.calibration))[0])
    ranking = channelscope.optimal_brain_surgeon(found, images.calibration)  # or any score: channelscope.scores.capture(profile)
    kept = channelscope.cut(ranking, found, macs=0.5)

    print("as it is:", channelscope.evaluate(model, images.test))
    with channelscope.silence(model, ~kept):
        print("silenced:", channelscope.evaluate(model, images.test))
    small = channelscope.shrink(found, kept)
    channelscope.repair(small, found, kept, images.calibration)
    print("repaired:", channelscope.evaluate(small, images.test))

    channelscope.save_pruned(small, model, kept, Path(folder) / "small")
    print("loaded:  ", channelscope.evaluate(channelscope.load_pruned(Path(folder) / "small"), images.test))
