"""The pictures of the documentation: first screens of the main pages, in headless Chromium. `make pictures` makes them."""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1200, 900
LARGEST = 200_000
"""bytes of a picture"""

COLORS = 128
"""of a picture's palette; what pages are made of needs no more"""

SCALES = (1.0, 0.8, 0.65, 0.5)
"""of which the largest is taken whose picture is small enough"""

NETWORK = ("resnet20", "--weights", "DEMO/trained.safetensors", "--images")

PAGES = {
    "report.png": (("demo",), "DEMO", "report.html"),
    "pictures/prune.png": (("prune", *NETWORK, "600"), "prune", "report.html"),
    "pictures/benchmark.png": (
        ("benchmark", *NETWORK, "400", "--scores", "random,l1,capture,relevance", "--budgets", "0.7,0.4"),
        "benchmark",
        "report.html",
    ),
    "pictures/circuit.png": (
        ("circuit", *NETWORK, "200", "--feature", "layer1.2.conv1:7", "--keep", "0.06"),
        "circuit",
        "circuit.html",
    ),
    "pictures/discard.png": (("discard", *NETWORK, "200", "--test", "8"), "discard", "report.html"),
    "pictures/prune_l1.png": (("prune", *NETWORK, "600", "--score", "l1"), "prune_l1", ""),
    "pictures/compare.png": (("compare", "RUNS/prune", "RUNS/prune_l1"), "compare", "report.html"),
}
"""picture in docs → what is run, its folder, and the page that is photographed, if any; in the order in which they need each other"""


def browser() -> str:
    """Path of a Chromium."""
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return found
    sys.exit(f"expected one of {', '.join(NAMES)} on the PATH: apt-get install chromium")


def photograph(page: Path, picture: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write the first screen of a page as a PNG with few colors."""
    size = [f"--window-size={width},{height}", "--hide-scrollbars", "--virtual-time-budget=8000"]
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.png"
        run = [browser(), "--headless", "--no-sandbox", "--disable-gpu", *size, f"--screenshot={whole}", page.resolve().as_uri()]
        subprocess.run(run, check=True, capture_output=True, timeout=300)
        with Image.open(whole) as taken:
            found = next((small for scale in SCALES if len(small := _packed(taken, scale)) <= LARGEST), None)
    if found is None:
        sys.exit(f"{picture} would have more than {LARGEST:,} bytes")
    picture.parent.mkdir(exist_ok=True)
    picture.write_bytes(found)
    print(picture, f"{len(found):,} bytes")


def _packed(taken: Image.Image, scale: float) -> bytes:
    """A picture as PNG with few colors, smaller by a factor."""
    file = io.BytesIO()
    shown = taken.convert("RGB").resize((round(taken.width * scale), round(taken.height * scale)))
    shown.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return file.getvalue()


def main() -> None:
    """Run what has not been run yet, and photograph its page."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--demo", type=Path, default=Path("runs/demo"), help="run folder of the demo")
    reader.add_argument("--runs", type=Path, default=Path("runs/pictures"), help="folder for the other runs")
    given = reader.parse_args()
    for picture, (command, name, page) in PAGES.items():
        folder = given.demo if name == "DEMO" else given.runs / name
        words = [word.replace("DEMO", str(given.demo)).replace("RUNS", str(given.runs)) for word in command]
        if not (folder / "report.html").exists():
            subprocess.run([sys.executable, "-m", "channelscope", *words, "--out", str(folder)], check=True)
        if page:
            photograph(folder / page, Path("docs") / picture)


if __name__ == "__main__":
    main()
