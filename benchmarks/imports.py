"""How long `import channelscope` takes over `import torch` alone: medians of interleaved runs in fresh processes."""

import statistics
import subprocess
import sys
import time

ROUNDS = 7


def seconds(statement: str) -> float:
    """Time of a fresh Python process that carries out one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the ratio."""
    statements = ("import torch", "import torch, channelscope", "import torch; from channelscope import collect, cut, shrink")
    for statement in statements:
        seconds(statement)  # files are in the cache afterwards
    rounds = [[seconds(statement) for statement in statements] for _ in range(ROUNDS)]
    base, *others = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"{statements[0]:62s} {base:5.2f} s")
    for statement, own in zip(statements[1:], others, strict=True):
        print(f"{statement:62s} {own:5.2f} s  {own / base:4.2f}×")


if __name__ == "__main__":
    main()
