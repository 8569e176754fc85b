"""Both axes of a small network on scanned digits: profile, scores, alignment."""

from channelscope import data, scores, zoo
from channelscope.experiments.axes import axis_alignment
from channelscope.profiling.collect import collect

model, images = zoo.load("resnet20", data=data.ImageSource("digits", images=400))
profile = collect(model, images.calibration)
print(profile.tally)

frame = scores.table(profile)
print(frame.groupby("site", sort=False)[["capture", "overlap", "relevance", "excess"]].median().round(4))

for row in axis_alignment(profile)["alignment_mean"].itertuples():
    print(f"{row.local} × {row.target}: mean Spearman {row.rho:.2f} [{row.low:.2f}, {row.high:.2f}] over {row.n} layers")
