"""Write golden results anew: `python -m tests.golden.update [merges] [recipe] [curves] [messages]`, default all."""

import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

NAMES = ("merges", "recipe", "curves", "messages")


def main(names):
    """Compute and write each result, as the tests do."""
    import tests.conftest  # noqa: F401 - sets the environment that the tests have
    from tests.golden.compare import signature, write_golden

    for name in names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {"SKILLGRAFT_CACHE": f"{folder}/cache", "SKILLGRAFT_LIBRARY": f"{folder}/library"}
            work = Path(folder).resolve() / "work"
            work.mkdir()
            found = import_module(f"tests.golden.{name}").results(work)
            write_golden(name, {"signature": signature(), **found})


if __name__ == "__main__":
    main(sys.argv[1:])
