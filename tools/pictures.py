"""The picture of the README: the first screen of the demo's report, in headless Chromium. `make pictures` makes it."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

PICTURE = Path("docs/report.png")
NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1200, 900


def browser() -> str:
    """Path of a Chromium."""
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return found
    sys.exit(f"expected one of {', '.join(NAMES)} on the PATH: apt-get install chromium")


def photograph(page: Path, picture: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write the first screen of a page as a PNG."""
    size = [f"--window-size={width},{height}", "--hide-scrollbars", "--virtual-time-budget=8000"]
    run = [browser(), "--headless", "--no-sandbox", "--disable-gpu", *size, f"--screenshot={picture.resolve()}", page.resolve().as_uri()]
    subprocess.run(run, check=True, capture_output=True, timeout=300)
    print(picture)


def main() -> None:
    """Run the demo where there is none, and photograph its report."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--run", type=Path, default=Path("runs/demo"), help="run folder of the demo")
    run = reader.parse_args().run
    if not (run / "report.html").exists():
        subprocess.run([sys.executable, "-m", "channelscope", "demo", "--out", str(run)], check=True)
    photograph(run / "report.html", PICTURE)


if __name__ == "__main__":
    main()
