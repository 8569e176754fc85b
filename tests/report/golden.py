"""The gold files of the tiny report: its skeleton and its sentences. `python tests/report/golden.py` writes them anew."""

import json
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from channelscope.report import verdict
from channelscope.report.page import render
from channelscope.report.sections import sections
from channelscope.tables.run_folder import RunFolder as Run
from report.folders import tiny

GOLD = Path(__file__).parent / "gold"


def skeleton(page: str) -> str:
    """The page without styles, scripts, data and the drawing."""
    page = re.sub(r"<style>.*?</style>", "<style></style>", page, flags=re.DOTALL)
    page = re.sub(r"(<script[^>]*>).*?</script>", r"\1</script>", page, flags=re.DOTALL)
    page = re.sub(r"<svg.*?</svg>", "<svg></svg>", page, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"


def data(page: str) -> str:
    """The embedded tables."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert found
    return json.dumps(json.loads(found[1]), indent=1, ensure_ascii=False) + "\n"


def sentences(run: Run) -> str:
    """Everything the report says in words."""
    said = [verdict.verdict(run.table("alignment_mean"), run.facts), *verdict.first_screen(run), *verdict.network(run.facts)]
    for section in sections(run):
        said += [f"## {section.title}", section.question, *section.answer(run)]
    return "\n".join([*said, "## channels", *verdict.undefined(run.table("channels"))]) + "\n"


def made(folder: Path) -> dict[str, str]:
    """File name → what it should hold."""
    run = Run.read(tiny(folder))
    page = render(run, plotly="")
    return {"skeleton.html": skeleton(page), "sentences.txt": sentences(run)}


if __name__ == "__main__":
    GOLD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for name, whole in made(Path(place)).items():
            (GOLD / name).write_text(whole)
