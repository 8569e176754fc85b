"""A smaller network, and the benchmark of scores at equal cost."""

import pandas as pd

from channelscope.report import verdict
from channelscope.report.section import Chart, Section
from channelscope.tables.frame import counted, format_interval, format_number, format_percent
from channelscope.tables.run_folder import RunFolder

CLEAR = 0.05


def benchmark_sentences(run: RunFolder) -> list[str]:
    """Sentences: the best score under every rule, the number of pairs that differ, and how far the ranking depends on the rule.

    Examples
    --------
    >>> from pathlib import Path
    >>> rows = [{"allocation": "global", "repair": "none", "epochs": 0, "score": name, "auc": auc, "auc_low": auc - 0.02,
    ...     "auc_high": auc + 0.02, "n": 1, "images": 100} for name, auc in (("l2", 0.5), ("random", 0.3))]
    >>> benchmark_sentences(RunFolder(Path(), {}, {"benchmark_auc": pd.DataFrame(rows)}))
    ['L2 norm has the largest area of 2 scores: 0.500 [0.480, 0.520] (n = 100 images), one seed (global, no repair).']
    """
    areas, pairs, agreement = (run.table(f"benchmark_{name}") for name in ("auc", "paired", "agreement"))
    if areas is None:
        return []
    said = _best_score(areas)
    if pairs is not None and len(pairs):
        clear = int((pairs["p_holm"] < CLEAR).sum())
        said.append(
            f"{clear} of {len(pairs)} pairs of scores differ at p < .05 after Holm's correction within their rule (sign flips over images; "
            "this is about these pruned networks on other images, not about other networks)."
        )
    left = run.table("benchmark_left_out")
    if left is not None and len(left):
        names = ", ".join(left["score"].unique())
        said.append(f"{len(left)} of the measurements are part of no area ({names}): the table of what is left out says why.")
    if agreement is not None and len(agreement):
        least = agreement.loc[agreement["spearman"].idxmin()]
        middle, lowest = (format_number(float(value), 2) for value in (agreement["spearman"].median(), least["spearman"]))
        rules = " and ".join(f"({', '.join(map(verdict.title, least[name].split(', ')))})" for name in ("first", "second"))
        said.append(
            f"Between rules the scores' areas correlate with a median Spearman of {middle}; least, {lowest} over "
            f"{least['scores']} scores, between {rules}."
        )
    return said


def _best_score(areas: pd.DataFrame) -> list[str]:
    """Which score has the largest area, a sentence for each that has it under some rule; the most frequent first."""
    by_rule = areas.groupby(["allocation", "repair", "epochs"], sort=False)
    best = areas.loc[by_rule["auc"].idxmax()]
    said = []
    for score in best["score"].value_counts(sort=True).index:
        rows = best.loc[best["score"] == score].sort_values("auc")
        ends = " to ".join(dict.fromkeys(_area_sentence(row) for row in (rows.iloc[0], rows.iloc[-1])))
        where = " under every rule" if len(rows) == len(best) > 1 else f" under {len(rows)} of {len(best)} rules" if len(best) > 1 else ""
        name = verdict.capitalized(verdict.title(score))
        said.append(f"{name} has the largest area of {by_rule.size().max()} scores{where}: {ends}.")
    return said


def _area_sentence(row: pd.Series) -> str:
    tuned = f", {row['epochs']} epochs" if row["epochs"] else ""
    seeds = "one seed" if row["n"] == 1 else f"mean of {row['n']} seeds"
    area = format_interval(row["auc"], row["auc_low"], row["auc_high"], row["images"], "images", 3)
    return f"{area}, {seeds} ({row['allocation']}, {verdict.title(row['repair'])}{tuned})"


BENCHMARK = Section(
    "benchmark_auc",
    "Scores compared",
    "Which score keeps most accuracy at the same multiply-adds, and does the answer depend on the rule?",
    (
        Chart(
            "FLOPs-AUC",
            "score",
            "auc",
            kind="rows",
            panels=("allocation", "repair", "epochs"),
            low="auc_low",
            high="auc_high",
            of="seeds",
            free=True,
            caption="Mean accuracy from the unpruned network to the smallest budget, with 95 % bootstrap intervals over images.",
        ),
        Chart(
            "Accuracy and cost",
            "budget",
            "accuracy",
            by="score",
            panels=("allocation", "repair", "epochs", "seed"),
            table="benchmark",
            low="accuracy_low",
            high="accuracy_high",
            of="images",
            count="images",
            free=True,
            caption="Wilson intervals over images; every score saw the same ones. Choose names above the chart to see them alone.",
        ),
        Chart(
            "Axes under every rule",
            "axis",
            "auc",
            kind="rows",
            panels=("allocation", "repair", "epochs"),
            table="benchmark_factorial",
            low="auc_low",
            high="auc_high",
            of="scores",
            count="scores",
            free=True,
            caption="Mean area of the scores that ask the same question.",
        ),
    ),
    benchmark_sentences,
    more=("benchmark", "benchmark_paired", "benchmark_factorial", "benchmark_agreement", "benchmark_left_out"),
    value="auc",
)


def pruning_sentences(run: RunFolder) -> list[str]:
    """Accuracy and cost of every state of the network.

    Examples
    --------
    >>> from pathlib import Path
    >>> row = {"state": "original", "accuracy": 0.9, "accuracy_low": 0.85, "accuracy_high": 0.94, "images": 100, "macs": 2000,
    ...     "parameters": 50, "kept": 1.0, "latency": 2.0}
    >>> small = row | {"state": "repaired", "accuracy": 0.88, "macs": 1000, "parameters": 20, "kept": 0.5, "latency": 1.5}
    >>> pruning_sentences(RunFolder(Path(), {}, {"pruning": pd.DataFrame([row, small])}))[0]
    "With 50.0 % of its multiply-adds the network is right on 88.0 % [85.0 %, 94.0 %] of 100 test images, 2.0 points below the
    original's 90.0 %."
    """
    frame = run.table("pruning")
    if frame is None:
        return []
    first, last = frame.iloc[0], frame.iloc[-1]
    said = [
        f"{'Without repair' if row.state == 'pruned' else str(row.state).capitalize()}: accuracy {format_percent(row.accuracy)} "
        f"[{format_percent(row.accuracy_low)}, {format_percent(row.accuracy_high)}] (n = {row.images:,} images)."
        for row in frame.iloc[1:-1].itertuples()
    ]
    if frame.attrs.get("provenance", {}).get("rotated"):
        said.append("Its linear streams were cut in another basis: the channels left there are mixtures of the original's.")
    if frame.attrs.get("provenance", {}).get("distillation_undone"):
        said.append("Distillation made it worse on the images that judge, so the network is the one from before.")
    speed = run.table("pruning_speed")
    times = f"; one image takes {format_number(last['latency'], 2)} ms instead of {format_number(first['latency'], 2)} ms (medians)"
    points = last["accuracy"] - first["accuracy"]
    apart = f"{format_number(abs(100 * points), 1)} points {'above' if points > 0 else 'below'}" if points else "level with"
    chance = verdict.no_better_than_chance(first["accuracy_low"], run.facts)
    original = format_percent(first["accuracy"]) + (f", which is {chance}" if chance else "")
    return [
        f"With {format_percent(last['kept'])} of its multiply-adds the network is right on "
        f"{format_percent(last['accuracy'])} [{format_percent(last['accuracy_low'])}, {format_percent(last['accuracy_high'])}] of "
        f"{last['images']:,} test images, {apart} the original's {original}.",
        f"It has {last['macs']:,} of {first['macs']:,} multiply-adds and {last['parameters']:,} of {first['parameters']:,} parameters"
        f"{times if speed is None else ''}.",
        *said,
        *speed_sentences(speed),
    ]


def speed_sentences(frame: pd.DataFrame | None) -> list[str]:
    """Where the smaller network gains most time and where least, and why a runtime was not measured.

    Examples
    --------
    >>> row = {"runtime": "eager", "batch": 1, "ratio": 0.75, "ratio_low": 0.72, "ratio_high": 0.78, "runs": 25, "note": ""}
    >>> fast = row | {"batch": 32, "ratio": 0.5, "ratio_low": 0.49, "ratio_high": 0.51}
    >>> other = row | {"runtime": "torch.compile", "ratio": float("nan"), "runs": 0, "note": "no C++ compiler was found"}
    >>> for sentence in speed_sentences(pd.DataFrame([row, fast, other])):
    ...     print(sentence)
    A pass takes 0.50 [0.49, 0.51] (n = 25 runs) of the original's time at best (eager PyTorch, 32 images) and 0.75 [0.72, 0.78]
    (n = 25 runs) at worst (eager PyTorch, 1 image).
    Time of a pass in torch.compile was not measured: no C++ compiler was found.
    """
    if frame is None:
        return []
    measured = frame.loc[frame["ratio"].notna()].sort_values("ratio")
    missing = frame.loc[frame["ratio"].isna()].drop_duplicates("runtime")
    said = []
    if len(measured):
        best, worst = measured.iloc[0], measured.iloc[-1]
        at_worst = f" and {_ratio(worst)} at worst ({_pass_of(worst)})" if len(measured) > 1 else ""
        said = [f"A pass takes {_ratio(best)} of the original's time{' at best' if at_worst else ''} ({_pass_of(best)}){at_worst}."]
    for row in missing.to_dict("records"):
        said.append(f"Time of a pass in {_runtime(row['runtime'])} was not measured: {str(row['note']).rstrip('.')}.")
    return said


def _ratio(row: pd.Series) -> str:
    return format_interval(row["ratio"], row["ratio_low"], row["ratio_high"], row["runs"], "runs")


def _pass_of(row: pd.Series) -> str:
    return f"{_runtime(row['runtime'])}, {counted(row['batch'], 'image')}"


def _runtime(name: str) -> str:
    return "eager PyTorch" if name == "eager" else name


PRUNING = Section(
    "pruning",
    "A smaller network",
    "How much accuracy does pruning cost, and how much of it does repair recover without training?",
    (
        Chart(
            "Accuracy",
            "state",
            "accuracy",
            kind="rows",
            low="accuracy_low",
            high="accuracy_high",
            of="images",
            caption="Whiskers are 95 % Wilson intervals over the test images; all states saw the same images.",
        ),
        Chart(
            "Time of a pass",
            "runtime",
            "ratio",
            kind="rows",
            panels=("batch",),
            table="pruning_speed",
            low="ratio_low",
            high="ratio_high",
            count="runs",
            of="runs",
            label="of the original's time [fraction]",
            caption="Medians of passes in turns with the original, with 95 % intervals; below 1 the smaller network is faster.",
        ),
        Chart(
            "Channels kept in each layer",
            "depth",
            "share",
            kind="bars",
            table="pruned_layers",
            count="channels",
            of="channels",
            caption="Layers at 1 kept all their channels. The table below says how many channels that are, and what held a layer whole.",
        ),
    ),
    pruning_sentences,
    more=("pruned_layers", "pruning_speed"),
    value="accuracy",
)
