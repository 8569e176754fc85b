"""Atomic files: each is written completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Temporary path to write to, with the suffix of `path`, which replaces `path` at the end of the block.

    If anything fails before, a full disk included, the file at `path` is unchanged and the temporary file is deleted.

    Parameters
    ----------
    path
        The file to write; missing folders are made.

    Yields
    ------
    Path
        The temporary file, in the same folder.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with atomic_file(Path(folder) / "numbers.txt") as temporary:
    ...         _ = temporary.write_text("1 2 3", encoding="utf-8")
    ...     [path.name for path in Path(folder).iterdir()]
    ['numbers.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.partial{path.suffix}")
    temporary.touch()
    mode = temporary.stat().st_mode
    temporary.unlink()
    try:
        yield temporary
        temporary.chmod(mode)  # as any new file: some libraries make theirs readable by nobody else
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
