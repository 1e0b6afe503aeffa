import subprocess
import sys

import pytest

pytestmark = pytest.mark.process


def test_reading_layouts_and_skills_loads_no_torch(tiny):
    script = (
        "import sys\nimport skillgraft.checkpoint, skillgraft.skills\n"
        "from skillgraft.checkpoint import read_layout, fingerprint_checkpoint, tokenizer_identity, read_provenance\n"
        f"path = {str(tiny)!r}\n"
        "read_layout(path); fingerprint_checkpoint(path); tokenizer_identity(path); read_provenance(path)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
