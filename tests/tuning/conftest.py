import pytest
import yaml

from skillgraft.arithmetic import extract
from tests.recipes import PLACES, write_jsonl
from tests.tiny import tiny_checkpoint, tiny_finetune


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A target, two skills, a merge recipe of them, and two sets of questions."""
    folder = tmp_path_factory.mktemp("search").resolve()
    tiny_checkpoint(folder / "base")
    tiny_finetune(folder / "base", folder / "target", seed=3)
    for seed, name in enumerate("ab", start=1):
        rl = tiny_finetune(folder / "base", folder / f"rl-{name}", seed=seed, size=2e-2)
        extract(rl, folder / "base", folder / name)
    operands = [{"skill": "a", "weight": 0.5}, {"skill": "b"}]
    recipe = {"method": "task_arithmetic", "base": "target", "operands": operands}
    (folder / "merge.yaml").write_text(yaml.safe_dump(recipe))
    write_questions(folder / "dev.jsonl", PLACES)
    write_questions(folder / "report.jsonl", ["Quill", "Sarn"])
    return folder


def write_questions(file, places):
    lines = [(p, f"When was {p}'s harbour {v}?", str(1900 + i)) for i, p in enumerate(places) for v in ("built", "lit")]
    write_jsonl(file, [{"document": p, "question": q, "answers": [a]} for p, q, a in lines])
