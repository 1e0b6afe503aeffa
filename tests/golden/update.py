"""Write the golden results anew: `python -m tests.golden.update [NAME …]`; only for a change that is meant."""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "SKILLGRAFT_PRECISION": "fp32", "OMP_NUM_THREADS": "1"}


def main(names):
    """Compute and write each result."""
    from tests.golden.cases import FOLDER, GOLDEN, machine

    for name in names or GOLDEN:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SKILLGRAFT_CACHE"] = f"{folder}/cache"
            (work := Path(folder) / "work").mkdir()
            result = {"machine": machine(), "result": GOLDEN[name](work)}
            (FOLDER / f"{name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
