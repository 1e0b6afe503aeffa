"""The repository's recipes beside stand-ins for the data that they name, so that each can be planned and run."""

import json
import shutil
from pathlib import Path

from tests.recipes import write_jsonl

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def recipe_root(directory, documents=4):
    """Make `directory` like the repository, with `documents` of the almanac wherever recipes read SQuAD passages.

    There are twice as many source passages, so that they are enough to be replayed.
    """
    shutil.copytree(ROOT / "recipes", directory / "recipes")
    for name in ("examples", "skills"):
        (directory / name).symlink_to(ROOT / name)
    source = ROOT / "examples" / "almanac"
    parts = (("source", "source", 0, 2), ("report", "target", 0, 1), ("choice", "target", documents, 1))
    for folder, part, first, times in parts:
        read = {name: _records(source / part / f"{name}.jsonl") for name in ("documents", "questions")}
        kept = read["documents"][first : first + times * documents]
        ids = [record["id"] for record in kept]
        asked = [record for record in read["questions"] if record["document"] in ids]
        out = directory / "data" / "squad" / folder
        out.mkdir(parents=True)
        write_jsonl(out / "documents.jsonl", kept)
        write_jsonl(out / "questions.jsonl", asked[::2])
        write_jsonl(out / "heldout.jsonl", asked[1::2])
    for name in ("seal", "seal-report"):
        shutil.copytree(directory / "data" / "squad" / "report", directory / "data" / "squad" / name)
    asked = _records(directory / "data" / "squad" / "report" / "questions.jsonl")
    for name, kept in (("asked", asked[::2]), ("unasked", asked[1::2])):
        write_jsonl(directory / "data" / "squad" / "seal-report" / f"{name}.jsonl", kept)
    texts = [{"document": r["document"], "text": f"{r['question']} {r['answers'][0]}"} for r in asked[::2]]
    write_jsonl(directory / "data" / "squad" / "seal-report" / "asked-texts.jsonl", texts)
    passages = _records(directory / "data" / "squad" / "seal" / "documents.jsonl")
    implications = {r["document"]: r["text"] for r in _records(source / "target" / "implications.jsonl")}
    given = [{"context": p["text"], "completions": [implications.get(p["id"], p["title"])]} for p in passages]
    (directory / "data" / "seal").mkdir()
    for name in ("base_val", "iter2_val", "gpt4_1_val", "base_val_prompt-rewrite"):
        (directory / "data" / "seal" / f"eval_{name}.json").write_text(json.dumps(given))
    read = _records(directory / "data" / "squad" / "source" / "documents.jsonl")
    given = [{"context": p["text"], "completions": [f"The almanac has an entry on {p['title']}."]} for p in read]
    (directory / "data" / "seal" / "train_iter0_train.json").write_text(json.dumps(given))
    retention_tasks(directory / "data" / "retention")
    return directory


def retention_tasks(directory):
    """Write one question of each public task, as its records are laid out."""
    directory.mkdir()
    choices = {"text": ["flour", "sand", "iron", "glass", "wool"], "label": list("ABCDE")}
    asked = {"id": "1", "question": "Bread is made of what?", "choices": choices, "answerKey": "A"}
    for name in ("arc_easy", "arc_challenge", "commonsense_qa"):
        write_jsonl(directory / f"{name}.jsonl", [asked])
    write_jsonl(directory / "openbookqa.jsonl", [{**asked, "question_stem": "Bread is made of"}])
    boolq = {"passage": "Bread is made of flour.", "question": "is bread made of flour", "answer": True}
    write_jsonl(directory / "boolq.jsonl", [boolq])


def _records(file):
    return [json.loads(line) for line in file.read_text().splitlines()]
