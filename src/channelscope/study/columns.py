"""columns: what the columns of a benchmark's tables mean."""

from channelscope.tables import Column

HERE = "this library"


def _part(meaning: str, source: str = HERE) -> Column:
    return Column("fraction", 3, meaning, source)


def _interval(name: str, of: str) -> dict[str, Column]:
    return {
        f"{name}_low": _part(f"lower end of the 95 % interval of {of} over images"),
        f"{name}_high": _part(f"upper end of the 95 % interval of {of} over images"),
    }


AUC = "mean accuracy over the removed fraction of the multiply-adds, from the unpruned network to the smallest of its budgets"

COLUMNS = {
    "score": Column(meaning="what channels are ranked by", source=HERE),
    "axis": Column(meaning="which question the score asks", source=HERE),
    "first": Column(meaning="the score, or rule, with the larger area", source=HERE),
    "second": Column(meaning="the other", source=HERE),
    "allocation": Column(
        meaning="global: one threshold; uniform: the same fraction of every layer; as(score): layer by layer as that score", source=HERE
    ),
    "repair": Column(meaning="what is done after removal; scratch: the same shape trained from new weights", source=HERE),
    "epochs": Column("epochs", 0, "of fine-tuning, or of training from scratch", HERE, low=0),
    "budget": Column("fraction", 2, "multiply-adds allowed", HERE, 0.0, 1.0),
    "budgets": Column(meaning="multiply-adds allowed, as fractions: those that all scores under the rule were measured at", source=HERE),
    "seed": Column("", 0, "of the calibration images", HERE, low=0),
    "accuracy": Column("fraction", 4, "accuracy", HERE, 0.0, 1.0),
    **_interval("accuracy", "the accuracy"),
    "loss": Column("nats", 3, "mean cross-entropy", HERE, low=0.0),
    "images": Column("images", 0, "evaluated on", HERE, low=0),
    "kept": Column("fraction", 4, "multiply-adds kept, of the unpruned network's", HERE, 0.0, 1.0),
    "parameters": Column("", 0, "parameters kept", HERE, low=0),
    "note": Column(meaning="why there is no number, or no area that contains it", source=HERE),
    "auc": Column("fraction", 4, AUC, "Safaai et al. 2026", 0.0, 1.0),
    **_interval("auc", "the area"),
    "spread": Column("fraction", 4, "standard deviation of the area over seeds", HERE, low=0.0),
    "n": Column("seeds", 0, "seeds averaged", HERE, low=0),
    "difference": Column("fraction", 4, "area of the first minus that of the second, on the same images and seeds", HERE),
    **_interval("difference", "the difference"),
    "p": Column("", 4, "sign-flip permutation p-value over images: for these pruned networks", "Fisher 1935", 0.0, 1.0),
    "p_holm": Column("", 4, "the same, adjusted for all pairs under the rule", "Holm 1979", 0.0, 1.0),
    "p_seeds": Column(
        "", 4, "sign-flip permutation p-value over seeds, each one cluster; at least 2/2ⁿ with n seeds", "Fisher 1935", 0.0, 1.0
    ),
    "effect": Column("", 2, "mean difference over its standard deviation over seeds (Cohen's d_z)", "Cohen 1988"),
    "scores": Column("scores", 0, "scores compared", HERE, low=0),
    "spearman": Column("", 2, "rank correlation of the scores' areas under the two rules", HERE, -1.0, 1.0),
}
