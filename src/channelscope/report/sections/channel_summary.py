"""The summary of one channel over several runs."""

from channelscope.report.section import Chart, Section
from channelscope.tables.run_folder import RunFolder as Run


def summary_sentences(run: Run) -> list[str]:
    """Sentences: the answer, the finding of each run, and the runs that are missing.

    Examples
    --------
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> summary_sentences(Run(Path(), {}, {"explanation": pd.DataFrame({"sentence": ["conv1:3: kept by 1 of 1 pruning."]})}))
    ['conv1:3: kept by 1 of 1 pruning.']
    """
    frame = run.table("explanation")
    return [] if frame is None else [str(each) for each in frame["sentence"]]


CHANNEL_SUMMARY = Section(
    "explanation",
    "Why this channel?",
    "Was the channel kept, what happens without it, which circuits does it serve, and where does it stand in its layer?",
    (
        Chart(
            "Its place in its layer",
            "score",
            "above",
            kind="rows",
            by="run",
            table="explanation_scores",
            label="share of its layer with a smaller value",
            zero=True,
            caption="1: no channel of its layer has a larger value; 0: none has a smaller one.",
        ),
    ),
    summary_sentences,
    more=("explanation_scores",),
)
