"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A place to write to, beside `path` and with its ending; at the end of the block it becomes `path`.

    If anything fails before, a full disk included, what was at `path` stays as it was and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.stem}.partial{path.suffix}")
    half.touch()
    mode = half.stat().st_mode
    half.unlink()
    try:
        yield half
        half.chmod(mode)  # as any new file: some libraries make theirs readable by nobody else
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
