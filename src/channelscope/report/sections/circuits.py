"""Circuits: the kernels one feature needs, how the criteria compare, and what a feature answers to."""

import pandas as pd

from channelscope.report.section import Chart, Drawing, Section
from channelscope.tables.frame import format_interval, format_number
from channelscope.tables.run_folder import RunFolder


def circuit_sentences(run: RunFolder) -> list[str]:
    """Sentences: the circuit's fidelity, that of random circuits of its size, and that of the network without it.

    Examples
    --------
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> row = {"feature": "conv1:0", "kernels": 4, "relevant": 40, "images": 64, "random_r": 0.1, "random_error": 1.2, "rest_error": 0.9}
    >>> row |= {"r": 0.9, "r_low": 0.8, "r_high": 0.95, "error": 0.2, "error_low": 0.1, "error_high": 0.3, "stability": float("nan")}
    >>> circuit_sentences(RunFolder(Path(), {}, {"circuit": pd.DataFrame([row])}))[1].split("; ")[0]
    'That is better than as many random kernels, which reach r = 0.10 and an error of 1.20'
    """
    frame = run.table("circuit")
    if frame is None:
        return []
    row = frame.iloc[0]
    said = [
        f"{row['kernels']:,} of the {row['relevant']:,} kernels that {row['feature']} depends on follow it with r = "
        f"{format_interval(row['r'], row['r_low'], row['r_high'], row['images'], 'held-out images')} and a normalized error of "
        f"{format_interval(row['error'], row['error_low'], row['error_high'], row['images'], 'held-out images')}.",
        f"{_against_chance(row)} as many random kernels, which reach r = {format_number(row['random_r'], 2)} and an error of "
        f"{format_number(row['random_error'], 2)}; "
        f"the network without the circuit has an error of {format_number(row['rest_error'], 2)}.",
    ]
    if row["stability"] == row["stability"]:
        share = format_interval(row["stability"], row["stability_low"], row["stability_high"], row["scored"], "images")
        said.append(f"Circuits of resampled images share {share} of its kernels.")
    return said


def _against_chance(row: pd.Series) -> str:
    """Whether a circuit follows its feature better than random ones, beyond the interval of its correlation."""
    better = row["r_low"] > row["random_r"] and row["error"] < row["random_error"]
    return "That is better than" if better else "That is no better than"


def circuit_drawings(run: RunFolder) -> list[Drawing]:
    """The diagram, which circuit.html shows with everything that can be clicked.

    Examples
    --------
    >>> from pathlib import Path
    >>> circuit_drawings(RunFolder(Path("/no/such/folder"), {}, {}))
    []
    """
    path = run.folder / "circuit.svg"
    if not path.is_file():
        return []
    return [
        Drawing(
            "circuit",
            "The circuit",
            path,
            "Columns are layers in the order they are computed, squares are channels, lines are kernels: red ones raise the feature, blue "
            "ones lower it, thick ones have the largest scores. A page beside this one has the names, more pictures, and controls.",
            "circuit_kernels",
            "circuit.html" if path.with_suffix(".html").is_file() else "",
        )
    ]


def comparison_sentences(run: RunFolder) -> list[str]:
    """Which criteria are the best or not worse beyond chance, size by size.

    Examples
    --------
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> comparison_sentences(RunFolder(Path(), {}, {}))
    []
    """
    frame = run.table("circuit_medians")
    if frame is None:
        return []
    said = []
    for kept, part in frame.groupby("kept", sort=False):
        top = part.loc[part["median_r"].idxmax()]
        tied = [name for name, best in zip(part["criterion"], part["best"], strict=True) if best and name != top["criterion"]]
        others = f"; not worse beyond chance: {', '.join(tied)}" if tied else ""
        value = format_interval(top["median_r"], top["median_r_low"], top["median_r_high"], top["n"], "features")
        said.append(f"At {kept:g} of the kernels {top['criterion']} has the highest median |r|, {value}{others}.")
    return said


def subfeature_sentences(run: RunFolder) -> list[str]:
    """How far the groups' circuits differ.

    Examples
    --------
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> overlap, images = pd.DataFrame({"site": [""], "shared": [0.25]}), pd.DataFrame({"cluster": [0, 0, 1]})
    >>> subfeature_sentences(RunFolder(Path(), {}, {"subcircuit_overlap": overlap, "subcircuits": images}))
    ['The strongest images fall into groups of 2 and 1; the circuits of two groups share 0.25 of their kernels.']
    """
    overlap, images = run.table("subcircuit_overlap"), run.table("subcircuits")
    if overlap is None or images is None:
        return []
    shared = format_number(float(overlap[overlap["site"] == ""]["shared"].mean()), 2)
    sizes = " and ".join(", ".join(map(str, images.groupby("cluster").size())).rsplit(", ", 1))
    return [f"The strongest images fall into groups of {sizes}; the circuits of two groups share {shared} of their kernels."]


def cluster_drawings(run: RunFolder) -> list[Drawing]:
    """The strongest images of every group.

    Examples
    --------
    >>> from pathlib import Path
    >>> cluster_drawings(RunFolder(Path("/no/such/folder"), {}, {}))
    []
    """
    path = run.folder / "groups.png"
    if not path.is_file():
        return []
    said = "The strongest images of each group, cropped to what the feature sees at its maximum."
    return [Drawing("groups", "The groups of images", path, said, "subcircuits")]


CIRCUIT = Section(
    "circuit",
    "A circuit",
    "Which kernels does this feature need, and how well do they compute it alone?",
    (
        Chart(
            "Correlation by size",
            "kept",
            "r",
            label="correlation r",
            low="r_low",
            high="r_high",
            of="images",
            count="images",
            table="circuit_curve",
            zero=True,
            log=True,
            caption="Correlation of the circuit's response with the feature's over held-out images, against the share of the relevant "
            "kernels it has: 1 follows the feature exactly. Bars are 95 % intervals over images.",
        ),
        Chart(
            "Error by size",
            "kept",
            "error",
            label="normalized error",
            low="error_low",
            high="error_high",
            of="images",
            count="images",
            table="circuit_curve",
            zero=True,
            log=True,
            caption="Squared distance of the circuit's response from the feature's, over the feature's variance: 0 is exact, 1 is as far "
            "as the feature's mean. Bars are 95 % intervals over images.",
        ),
    ),
    circuit_sentences,
    circuit_drawings,
    more=("circuit_curve", "circuit_layers", "circuit_channels", "circuit_kernels"),
    value="r",
)

COMPARISON = Section(
    "circuit_medians",
    "Criteria for circuits",
    "Which score of kernels keeps a feature best, at which size?",
    (
        Chart(
            "Median |r| over features",
            "kept",
            "median_r",
            by="criterion",
            low="median_r_low",
            high="median_r_high",
            of="features",
            label="median |r|",
            zero=True,
            log=True,
            caption="Whiskers are 95 % bootstrap intervals over features; a circuit that computes a constant counts as 0.",
        ),
    ),
    comparison_sentences,
    more=("circuit_compare",),
    value="median_r",
)

SUBCIRCUITS = Section(
    "subcircuit_curves",
    "Sub-features",
    "Does the feature answer to several things, each with kernels of its own?",
    (
        Chart(
            "Error at the peaks",
            "kept",
            "peak_error",
            by="scored_on",
            panels=("judged_on",),
            of="images",
            count="images",
            zero=True,
            log=True,
            caption="Each line is a circuit scored on one group of images (mixed: of all), each panel the group it is judged on.",
        ),
    ),
    subfeature_sentences,
    cluster_drawings,
    more=("subcircuits", "subcircuit_overlap"),
)
