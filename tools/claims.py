"""Measure the published claims on trained networks, into docs/results/claims.csv and the page that is made from it.

    python tools/claims.py resnet20 --data digits runs/digits/seed0 runs/digits/seed1 runs/digits/seed2
    python tools/claims.py path/to/nets.py:Net --data hf:FOLDER --weights net.safetensors
    python tools/claims.py resnet18 --data hf:FOLDER --label-column fine_label runs/papers/resnet18_seed0 \\
        --images 1200 --evaluated 200 --ablated 8
    python tools/claims.py --page

A run folder is what `channelscope train` leaves: initialization, checkpoints and trained weights, one folder a seed. What it says is
kept in docs/results/claims, layer by layer, so a run whose folder is gone can still be named with later ones. A weights file alone has
no initialization, and the claims about training are left out. Rows of the same network and data are replaced. Every claim is a number
per layer (or per connection of two layers); its interval is over runs where there are at least three, else a bootstrap over layers.

Regressions on peers need more images than the widest layer has channels. Most of the time goes into ablations: for every
ablated channel four passes (silence and three replacements) of the evaluated images through the network from the layer on.
"""

import argparse
import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

import channelscope
from channelscope import zoo
from channelscope.data.images import ImageSplits
from channelscope.data.sources import ImageSource
from channelscope.errors import FormatError
from channelscope.experiments import (
    AblationPlan,
    ablate,
    axis_alignment,
    axis_clusters,
    axis_propagation,
    find_communities,
    gradient_angles,
    task_mass,
    training_trajectory,
)
from channelscope.experiments.axes import LOCAL, TARGET
from channelscope.formulas.intervals import bootstrap_mean, t_interval
from channelscope.formulas.ranks import partial_spearman, spearman
from channelscope.network.module_state import weights_hash
from channelscope.stats.profile import Profile
from channelscope.zoo.training_run import History

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "results" / "claims.csv"
COLUMNS: tuple[str, ...] = ("claim", "source", "network", "data", "seeds", "n", "value", "low", "high", "published", "verdict", "command")
FEWEST_RUNS = 3
PAPER = "Safaai et al. 2026"
LEAST = 8

Values = dict[str, dict[str, float]]
"""claim → layer → value"""

CONNECTION = " → "
"""between the two layers of a connection"""


@dataclass(frozen=True)
class Claim:
    """A published claim about a number: it holds where the interval lies between the two bounds."""

    text: str
    published: str = ""
    above: float = -math.inf
    below: float = math.inf
    source: str = PAPER

    def verdict(self, low: float, high: float) -> str:
        """held, not held or open, by an interval."""
        if math.isnan(low) or math.isnan(high):
            return "open"
        if low > self.above and high < self.below:
            return "held"
        return "not held" if high < self.above or low > self.below else "open"


TITLES = {"capture": "input capture", "overlap": "peer overlap", "support": "peer support", "rayleigh": "Rayleigh quotient"}
TITLES |= {"relevance": "task information", "excess": "target excess", "compactness": "hull compactness"}
WEAK, ORTHOGONAL, APART, NEAR_ZERO, MOST = 0.5, 0.3, 0.3, 0.1, 0.5
OURS = "later code of the authors"

CLAIMS = {
    **{
        f"rho {stage} {local} {target}": Claim(
            f"weak alignment when {stage}: ρ({TITLES[local]}, {TITLES[target]}) within layers, between −{WEAK} and {WEAK}"
            if stage == "trained"
            else f"ρ({TITLES[local]}, {TITLES[target]}) within layers at initialization, above 0",
            {"trained": ".22", "initial": ".71"}[stage] if (local, target) == ("capture", "relevance") else "",
            above=-WEAK if stage == "trained" else 0.0,
            below=WEAK if stage == "trained" else math.inf,
        )
        for stage in ("initial", "trained")
        for local in LOCAL
        for target in TARGET
    },
    "separation": Claim("the axes separate in training: change of ρ(input capture, task information), below 0", "−.49", below=0.0),
    "ari": Claim(f"groupings differ: adjusted Rand index of local and target clusters, below {APART}", "", below=APART),
    "hull_size": Claim("hulls grow in training: change of the mean hull size, above 0 members", "1.19", 0.0),
    "saturated": Claim("more hulls saturate: change of the saturated share, above 0", ".128", 0.0),
    "ratio": Claim("triples gain beyond pairs: change of S3/S2, above 0", ".189", 0.0),
    "hull_size early": Claim("hulls grow from the first checkpoint after the initialization on: change, above 0 members", "", 0.0),
    "saturated early": Claim("more hulls saturate from the first checkpoint on: change of the share, above 0", "", 0.0),
    "ratio early": Claim("triples gain beyond pairs from the first checkpoint on: change of S3/S2, above 0", "", 0.0),
    "cosine": Claim(
        f"gradients of the axes are nearly orthogonal: mean |cos| after the first layer, below {ORTHOGONAL}", ".047–.18", -1, ORTHOGONAL
    ),
    "modularity": Claim("the R-graph is more modular than the S-graph: difference of modularity, above 0", "", 0.0),
    "local → local": Claim("the local axis propagates to itself: partial ρ of connected layers, above 0", "", 0.0),
    "target → target": Claim("the target axis propagates to itself: partial ρ of connected layers, above 0", "", 0.0),
    "local → target": Claim(f"the local axis does not reach the target axis: partial ρ, within ±{NEAR_ZERO}", "", -NEAR_ZERO, NEAR_ZERO),
    "target → local": Claim(f"the target axis does not reach the local axis: partial ρ, within ±{NEAR_ZERO}", "", -NEAR_ZERO, NEAR_ZERO),
    **{
        f"matched {name}": Claim(
            f"damage follows {TITLES[name]} at equal task information and input capture: partial ρ with the damage, below 0", "", below=0.0
        )
        for name in ("overlap", "support", "compactness")
    },
    "hull over random": Claim("hulls recover more than as many random peers: difference of the recovered share, above 0", "", 0.0),
    "local over target": Claim("input capture predicts damage better than task information: difference of ρ, above 0", "", 0.0),
    "credit over relevance": Claim(
        "task credit predicts damage better than task information: difference of ρ, above 0", "", 0.0, source=OURS
    ),
    "credit over excess": Claim("task credit predicts damage better than target excess: difference of ρ, above 0", "", 0.0, source=OURS),
    "nonreplaceable over relevance": Claim(
        "non-replaceable task information predicts damage better than task information: difference of ρ, above 0", "", 0.0, source=OURS
    ),
    "duplicate share": Claim(
        f"peers duplicate most of a trained layer's task information: share of its sum, above {MOST}", "", MOST, source=OURS
    ),
}


@dataclass(frozen=True)
class Run:
    """What one training run says of the claims."""

    state: str
    """how far it is, where it is not finished"""
    images: int
    """calibration images behind every value"""
    values: Values


def of_profiles(stages: Mapping[int, Profile]) -> Values:
    """What the statistics alone say: of the trained network, and its change since the initialization where that is there."""
    last = stages[max(stages)]
    found: Values = defaultdict(dict)
    for stage, profile in {"initial": stages.get(0), "trained": last}.items():
        if profile is not None and (stage == "trained" or len(stages) > 1):
            for row in axis_alignment(profile)["alignment"].itertuples():
                found[f"rho {stage} {row.local} {row.target}"][row.site] = row.rho
    found["duplicate share"] = _by_site(task_mass(last), "duplicate_share")
    found["ari"] = _by_site(axis_clusters(last), "ari")
    graphs = find_communities(last, shards=False)["communities"].set_index(["graph", "site"])["modularity"]
    found["modularity"] = (graphs["R"] - graphs["S"]).to_dict()
    if 0 in stages and len(stages) > 1:
        before, after = (found[f"rho {stage} capture relevance"] for stage in ("initial", "trained"))
        found["separation"] = {site: after[site] - before[site] for site in after}
        early = min(epoch for epoch in stages if epoch)
        frame = training_trajectory([("run", epoch, stages[epoch]) for epoch in sorted({0, early, max(stages)})])["trajectory_layers"]
        by_epoch = {epoch: rows.set_index("site") for epoch, rows in frame.groupby("epoch")}
        for quantity in ("hull_size", "saturated", "ratio"):
            found[quantity] = (by_epoch[max(stages)][quantity] - by_epoch[0][quantity]).to_dict()
            if early != max(stages):
                found[f"{quantity} early"] = (by_epoch[max(stages)][quantity] - by_epoch[early][quantity]).to_dict()
    return found


def _by_site(frame: pd.DataFrame, column: str) -> dict[str, float]:
    return frame.set_index("site")[column].to_dict()


def of_network(model: torch.nn.Module, profile: Profile, images: ImageSplits, count: int, evaluated: int, ablated: int) -> Values:
    """What needs the network: gradients, propagation and ablations."""
    batches = images.calibration.take(count)
    layers = gradient_angles(model, profile, batches, progress=False)["gradient_layers"].sort_values("depth")
    found: Values = {"cosine": _by_site(layers.iloc[1:], "cosine")}
    links = axis_propagation(model, profile)["propagation"]
    links["link"] = links["site"] + CONNECTION + links["consumer"]
    for axes, rows in links.groupby("axes"):
        found[str(axes)] = rows.groupby("link")["rho"].mean().to_dict()
    plan = AblationPlan(channels=ablated * len(profile.sites), controls=ablated * len(profile.sites))
    tables = ablate(model, profile, images.test.take(min(evaluated, len(images.test))), plan, progress=False)
    return found | _of_ablations(tables["ablated_channels"], tables["recovered"])


def _of_ablations(channels: pd.DataFrame, recovered: pd.DataFrame) -> Values:
    """Rank correlations of the damage (Kullback-Leibler divergence of the output) within layers, and what hulls recover."""
    found: Values = defaultdict(dict)
    for site, rows in channels.groupby("site"):
        damage = torch.tensor(rows["kl"].to_numpy())
        values = {name: torch.tensor(rows[name].to_numpy()) for name in rows if name in channelscope.scores.REGISTRY}
        rho = {name: float(spearman(column, damage)) for name, column in values.items()}
        found["local over target"][str(site)] = rho["capture"] - rho["relevance"]
        if "task_credit" in rho:
            found["credit over relevance"][str(site)] = rho["task_credit"] - rho["relevance"]
            found["credit over excess"][str(site)] = rho["task_credit"] - rho["excess"]
            found["nonreplaceable over relevance"][str(site)] = rho["nonreplaceable_task"] - rho["relevance"]
        matched = torch.stack([values["relevance"], values["capture"]], 1)
        for name in ("overlap", "support", "compactness"):
            known = torch.stack([values[name], damage, *matched.T]).isfinite().all(0)
            if int(known.sum()) >= LEAST:
                found[f"matched {name}"][str(site)] = float(partial_spearman(values[name][known], damage[known], matched[known]))
    chosen = recovered.query("quantity == 'kl' and baseline == 'silence' and subset == 'controls' and site != 'all layers'")
    shares = chosen.pivot_table(index="site", columns="replacement", values="recovered")
    found["hull over random"] = (shares["hull"] - shares["random"]).to_dict()
    return found


def summary(claim: Claim, runs: Sequence[Mapping[str, float]], images: int) -> dict[str, str]:
    """Value, interval, n and verdict of a claim, from its value at every layer of each run."""
    places = "connections" if any(CONNECTION in name for name in runs[0]) else "layers"
    layers = pd.DataFrame(list(runs)).dropna(axis=1, how="all")
    means = layers.mean(axis=1).dropna()
    if len(means) >= FEWEST_RUNS:
        value, low, high = t_interval(means.to_numpy())
        n = f"{len(means)} runs, {layers.shape[1]} {places}"
    else:
        interval = bootstrap_mean(torch.tensor(layers.mean(axis=0).to_numpy()))
        value, low, high, n = interval.value, interval.low, interval.high, f"{layers.shape[1]} {places}"
    numbers = {name: f"{number:.4f}" for name, number in (("value", value), ("low", low), ("high", high))}
    return {"n": f"{n}, {images:,} images", **numbers, "published": claim.published, "verdict": claim.verdict(low, high)}


def measured(network: str, source: ImageSource, folder: Path, weights: Path | None, options: argparse.Namespace) -> "Run":
    """What a run says, kept beside the table: it is measured once, and can be shown with later runs when its weights are gone."""
    run = weights.stem if weights else folder.name.removeprefix(f"{short_name(network)}_")
    name = "_".join(re.sub(r"[^a-z0-9]+", "_", each.lower()).strip("_") for each in (short_name(network), short_name(source.data), run))
    kept = options.out.with_suffix("") / f"{name}.json"
    settings = {"evaluated": options.evaluated, "ablated": options.ablated}
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else None
    if known and not weights and not folder.exists():
        if not settings.items() <= known.items() or known["images"] > options.images:
            raise FormatError(f"{kept}: measured with other settings, and there is no folder {folder} to measure again")
        return Run(known["state"], known["images"], known["values"])
    state, checkpoints = ("", {1: weights}) if weights else _checkpoints(folder)
    model, images = zoo.load(network, source, checkpoints[max(checkpoints)])
    count = min(options.images, len(images.calibration))
    settings |= {"weights": weights_hash(model), "images": count}
    if not known or not settings.items() <= known.items():
        stages = {}
        for epoch, path in checkpoints.items():
            stages[epoch] = channelscope.collect(zoo.load(network, source, path)[0], images.calibration.take(count), shards=0)
        found = of_profiles(stages) | of_network(model, stages[max(stages)], images, count, options.evaluated, options.ablated)
        rounded = {claim: {place: float(f"{value:.4g}") for place, value in values.items()} for claim, values in found.items()}
        known = {**settings, "state": state, "values": rounded}
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(known) + "\n", encoding="utf-8")
    return Run(state, count, known["values"])


def short_name(path: str) -> str:
    """The last part of the path of a folder or of a file's class, as tables name a network or a set of images."""
    return path.rstrip("/").rsplit(":", 1)[-1].rsplit("/", 1)[-1]


def _checkpoints(folder: Path) -> tuple[str, dict[int, Path]]:
    """How far a run is, and its initialization, first checkpoint after it, and trained weights."""
    history = History.read(folder)
    last, total = history.epochs[-1].epoch, history.settings["schedule"]["epochs"]
    saved = {epoch: path for epoch, path in sorted(history.checkpoints.items()) if epoch < last}
    chosen = dict(list(saved.items())[:2]) | {last: history.trained}
    return "" if history.test_images else f", epoch {last} of {total}", chosen


def rows_of(network: str, data: str, command: str, runs: Sequence[Run]) -> Iterator[dict[str, str]]:
    """One row per claim that was measured in any run."""
    for key, claim in CLAIMS.items():
        known = [run.values[key] for run in runs if run.values.get(key)]
        if known:
            about = {"claim": claim.text, "source": claim.source, "network": network, "data": data, "seeds": str(len(known))}
            yield {**about, **summary(claim, known, runs[0].images), "command": command}


def read(path: Path) -> list[dict[str, str]]:
    """All rows of the table; none where it is not there yet."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and tuple(rows[0]) != COLUMNS:
        raise FormatError(f"{path}: expected the columns {', '.join(COLUMNS)}, found {', '.join(rows[0])}")
    return rows


def write(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Table and page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    path.with_suffix(".md").write_text(page(rows), encoding="utf-8")


def page(rows: Sequence[dict[str, str]]) -> str:
    """The page: one table per network, the claims in their order."""
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("held", "not held", "open")}
    lines = [
        "# The published claims, one by one",
        "",
        "*For reviewers: each claim, what was measured, and whether it holds.*",
        "",
        "Made from `claims.csv` beside this page by `python tools/claims.py --page`; each table's command measures it again. "
        "A value is the mean over layers (or connections of two layers), then over training runs. The interval is 95 %: Student's over "
        "runs where there are at least three, else a bootstrap over layers. A claim is **held** where the whole interval lies within "
        "the bounds that the claim names, **not held** where it lies outside, and **open** otherwise; bounds other than 0 are ours. "
        "Published values are those of ResNet-18 on CIFAR-100. Images are calibration images; damage is that of up to 12 channels "
        "a layer on at most 500 test images, measured by the Kullback-Leibler divergence of the output. The networks on the digits are "
        "those of `channelscope train resnet20 --data digits --seed 0 --out runs/digits/seed0`, and so for seeds 1 and 2; six claims "
        "that three earlier runs left open are held by these.",
        "",
        f"{len(rows)} measurements: {counts['held']} held, {counts['not held']} not held, {counts['open']} open.",
    ]
    networks: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        networks[row["network"], row["data"], row["command"]].append(row)
    for (network, data, command), found in networks.items():
        lines += ["", f"## {network} on {data}", "", "```", command, "```", "", "| claim | source | published | measured | n | verdict |"]
        lines.append("|---|---|---|---|---|---|")
        for row in found:
            value, low, high = (_shown(row[name]) for name in ("value", "low", "high"))
            cells = (
                row["claim"].replace("|", "\\|"),
                row["source"],
                row["published"],
                f"{value} [{low}, {high}]",
                row["n"],
                row["verdict"],
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(number: str) -> str:
    return "–" if number == "nan" else f"{float(number):.2f}".replace("-", "−")


def main() -> None:
    """Measure the claims for a network, or write the page again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?")
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--label-column")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="calibration images, all of them where there are fewer")
    parser.add_argument("--evaluated", type=int, default=500, help="test images of the ablations")
    parser.add_argument("--ablated", type=int, default=12, help="channels of each layer that are ablated")
    parser.add_argument("--out", type=Path, default=TABLE, help="the table; the page stands beside it")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    options = parser.parse_intermixed_args()
    rows = read(options.out)
    if not options.page:
        source = ImageSource(options.data, label_column=options.label_column)
        folders = options.runs or [ROOT / "runs" / "claims"]
        found = [measured(options.network, source, folder, options.weights, options) for folder in folders]
        words = [options.network, *map(str, options.runs), "--data", options.data]
        for flag in ("label_column", "weights", "images", "evaluated", "ablated"):
            if vars(options)[flag] != parser.get_default(flag):
                words += [f"--{flag.replace('_', '-')}", str(vars(options)[flag])]
        network, data = short_name(options.network) + found[0].state, short_name(options.data)
        name = network.partition(",")[0]
        rows = [row for row in rows if (row["network"].partition(",")[0], row["data"]) != (name, data)]
        rows += rows_of(network, data, "python tools/claims.py " + " ".join(words), found)
    write(rows, options.out)


if __name__ == "__main__":
    main()
