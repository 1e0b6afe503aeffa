"""Output of text: printed, or written into a new file."""

from __future__ import annotations

from pathlib import Path

from skillgraft.errors import OutputExistsError, StorageError


def print_or_write(text: str, out: Path | None) -> None:
    """Print `text`, or write it into the new file `out`; `OutputExistsError` or `StorageError` where that fails."""
    if out is None:
        print(text, end="")
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise OutputExistsError(f"{out} exists already and nothing is overwritten; choose another file") from error
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}; choose another file") from error
