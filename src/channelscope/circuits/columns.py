"""columns: what the columns of the tables about circuits say."""

from collections.abc import Mapping

from channelscope.tables import Column

PAPER, OURS = "Hamblin, Konkle, Alvarez 2022", "this library"
R = Column("", 3, "Pearson correlation of circuit and feature over held-out images × positions", PAPER, -1.0, 1.0)
ERROR = Column("", 3, "Σ(ŷ − y)²/Σ(y − ȳ)² on held-out images: 0 exact, 1 the feature's mean", OURS, 0.0)


def _count(meaning: str, source: str = PAPER) -> Column:
    return Column("kernels", 0, meaning, source, 0.0)


def _share(meaning: str, source: str = PAPER) -> Column:
    return Column("fraction", 3, meaning, source, 0.0, 1.0)


def _text(meaning: str) -> Column:
    return Column(meaning=meaning, source=OURS)


CIRCUIT_COLUMNS: Mapping[str, Column] = {
    "feature": _text("what the circuit computes"),
    "criterion": _text("how kernels were scored"),
    "kernels": _count("kernels of the circuit"),
    "relevant": _count("kernels on a path from the images to the feature"),
    "asked": _count("kernels selected, before dead ends were dropped", OURS),
    "kept": _share("kernels selected over relevant kernels"),
    "made_for": _share("share of the relevant kernels that the scores were made for; nan where they hold for every size", OURS),
    "scored": Column("images", 0, "images that kernels were scored on", OURS, 0.0),
    "r": R,
    "error": ERROR,
    "rest_error": Column("", 3, "error of what is left when the circuit is removed (completeness: 1 or more)", OURS, 0.0),
    "random_r": Column("", 3, "r of as many random kernels, median of three draws; a constant counts as 0", OURS, -1.0, 1.0),
    "random_error": Column("", 3, "error of as many random kernels, median of three draws", OURS, 0.0),
    "stability": _share("intersection over union with the circuits of bootstrapped images", OURS),
    "r_area": Column(
        "", 3, "mean of r over the logarithm of the size, from .001 to .9 of the kernels; no circuit counts as 0", OURS, -1.0, 1.0
    ),
    "excitatory": _count("kernels of the circuit whose summed effect raises the feature", OURS),
    "inhibitory": _count("kernels of the circuit whose summed effect lowers the feature", OURS),
    "input": _text("channel that the kernel reads, as layer:channel; several where it reads their sum"),
    "saliency": Column("", 4, "score of the kernel, divided by the largest in the circuit", OURS, 0.0, 1.0),
    "effect": Column(
        "", 4, "summed effect with its sign, divided by the largest in the circuit; nan where no sign is measured", OURS, -1.0, 1.0
    ),
    "reads": _count("kernels of the circuit that make the channel", OURS),
    "feeds": _count("kernels of the circuit that read the channel", OURS),
    "cluster": Column("", 0, "group of the feature's strongest images, from 0", PAPER, 0.0),
    "judged_on": Column("", 0, "group whose images the circuit was judged on", PAPER, 0.0),
    "scored_on": _text("images that the circuit's kernels were scored on"),
    "other": Column("", 0, "the other group", PAPER, 0.0),
    "shared": _share("kernels of both circuits over kernels of either"),
    "image": Column("", 0, "index of the image in its data set's fixed shuffle", OURS, 0.0),
    "activation": Column("", 4, "the feature at the position of its maximum", OURS),
    "position": _text("row,column of the feature's maximum"),
    "peak_error": Column("", 3, "Σ|ŷ − y|/Σ|y| at each image's original maximum: 0 exact, 1 silence, nan where all are 0", PAPER, 0.0),
    "median_r": Column("", 3, "median of |r| over features", PAPER, 0.0, 1.0),
    "median_error": Column("", 3, "median of the error over the features that have a circuit of that size", OURS, 0.0),
    "n_error": Column("features", 0, "features that have a circuit of that size, behind the median of the error", OURS, 0.0),
    "best": Column("", 0, "whether the criterion's median |r| is the highest, or not worse than the highest beyond chance", OURS),
    "behind": Column("", 3, "median over features of the best criterion's |r| minus this one's", OURS),
}
"""every column of the tables about circuits by name"""
