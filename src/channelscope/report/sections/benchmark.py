"""Scores compared: which ranking keeps most accuracy at the same cost, and how sure that is."""

from channelscope.report.chart import Chart
from channelscope.report.run import Run
from channelscope.report.section import Section
from channelscope.tables import interval, shown

CLEAR = 0.05


def compared(run: Run) -> list[str]:
    """The best score under every rule, how many pairs differ, and whether the ranking is the rule's doing."""
    areas, pairs, agreement = (run.table(f"benchmark_{name}") for name in ("auc", "paired", "agreement"))
    if areas is None:
        return []
    said = []
    for rule, rows in areas.groupby(["allocation", "repair", "epochs"], sort=False):
        best = rows.sort_values("auc", ascending=False).iloc[0]
        tuned = f", {rule[2]} epochs" if rule[2] else ""
        area = interval(best["auc"], best["auc_low"], best["auc_high"], best["images"], "images", 3)
        seeds = "one seed" if best["n"] == 1 else f"mean of {best['n']} seeds"
        said.append(f"{rule[0]}, {rule[1]}{tuned}: {best['score']} has the largest area of {len(rows)} scores, {area}, {seeds}.")
    if pairs is not None and len(pairs):
        clear = int((pairs["p_holm"] < CLEAR).sum())
        said.append(
            f"{clear} of {len(pairs)} pairs of scores differ at p < .05 after Holm's correction within their rule (sign flips over images; "
            "this is about these pruned networks on other images, not about other networks)."
        )
    if agreement is not None and len(agreement):
        least = agreement.loc[agreement["spearman"].idxmin()]
        middle, lowest = (shown(float(value), 2) for value in (agreement["spearman"].median(), least["spearman"]))
        said.append(
            f"Between rules the scores' areas correlate with a median Spearman of {middle}; least, {lowest} over "
            f"{least['scores']} scores, between '{least['first']}' and '{least['second']}'."
        )
    return said


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
            caption="Mean accuracy from the unpruned network to the smallest budget, with 95 % bootstrap intervals over images.",
        ),
        Chart(
            "Accuracy and cost",
            "budget",
            "accuracy",
            by="score",
            color="axis",
            panels=("allocation", "repair", "epochs", "seed"),
            table="benchmark",
            low="accuracy_low",
            high="accuracy_high",
            of="images",
            count="images",
            caption="Wilson intervals over images; every score saw the same ones.",
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
            caption="Mean area of the scores that ask the same question.",
        ),
    ),
    compared,
    more=("benchmark", "benchmark_paired", "benchmark_factorial", "benchmark_agreement"),
    value="auc",
)
