"""How long `channelscope -h` and imports of the package take over `import torch` alone: medians of interleaved runs in fresh processes."""

import statistics
import subprocess
import sys
import time

ROUNDS = 7
STATEMENTS = {
    "import torch": "import torch",
    "import torch, channelscope": "import torch, channelscope",
    "from channelscope import collect, cut, shrink": "import torch; from channelscope import collect, cut, shrink",
    "channelscope --version": "import sys; sys.argv = ['channelscope', '--version']; from channelscope.cli import main; main()",
    "channelscope -h": "import sys; sys.argv = ['channelscope', '-h']; from channelscope.cli import main; main()",
    "channelscope sites -h": "import sys; sys.argv = ['channelscope', 'sites', '-h']; from channelscope.cli import main; main()",
}
"""what is timed → a statement for a fresh Python; the first is what the others are compared with"""


def seconds(statement: str) -> float:
    """Time of a fresh Python process that carries out one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print seconds and ratios."""
    for statement in STATEMENTS.values():
        seconds(statement)  # files are in the cache afterwards
    rounds = [[seconds(statement) for statement in STATEMENTS.values()] for _ in range(ROUNDS)]
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    for name, own in zip(STATEMENTS, medians, strict=True):
        print(f"{name:48s} {own:5.2f} s  {own / medians[0]:4.2f}×")


if __name__ == "__main__":
    main()
