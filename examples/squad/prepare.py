"""Turn SQuAD-like passages into Skillgraft's documents and questions: to learn a skill, to choose, and to report.

    python examples/squad/prepare.py --source seal/train_iter0_train.json --source seal/train_iter1_train.json \
        --target squad/passages.json --out data/squad

Input: JSON lists of {"title", "context", "questions": [{"question", "answer"}]}, as in the SEAL repository
(Continual-Intelligence/SEAL; its training slices are SQuAD train passages) or made from `rajpurkar/squad`.

The target's articles are dealt to `source` (beside the passages given as such), `choice` and `report` by a hash of
their title, so that no article stands in two of them: lambda, checkpoint and settings are chosen on `choice` alone,
and `report` is read once. `read` holds the passages that a first report has shown already: kept to make it again, and
left out of `report`. Every tenth source question is held out of RL (`heldout.jsonl`), to see whether the skill or the
answers were learnt. `--evaluation seal/eval_base_val.json` adds `seal`: those passages as they stand, which are SEAL's
own 200, for its renderings; and `seal-report`, those of them on articles of `report`, which no skill has seen, with the
questions of each in two halves: one to learn from, one to be asked.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
from collections import Counter
from pathlib import Path


def load(file: Path) -> list[dict]:
    """Return the passages with at least one question; `questions` may be a string holding a list."""
    passages = json.loads(file.read_text())
    for passage in passages:
        if isinstance(passage["questions"], str):
            passage["questions"] = ast.literal_eval(passage["questions"])
        passage["title"] = passage["title"].replace("_", " ")
    return [passage for passage in passages if passage["questions"]]


def part(title: str) -> str:
    """Return `report` for about two thirds of all titles, else `choice` or `source`: a property of the title alone."""
    first, second = hashlib.sha256(title.encode()).digest()[:2]
    if first % 3:
        return "report"
    return "choice" if second % 2 else "source"


def order(passage: dict) -> str:
    """Return a sort key that has nothing to do with the passage's content."""
    return hashlib.sha256(passage["context"].encode()).hexdigest()


def deal(passages: list[dict], name: str, count: int, per_article: int) -> list[dict]:
    """Return up to `count` passages with at least 4 questions, at most `per_article` of one article."""
    taken: Counter[str] = Counter()
    chosen = []
    for passage in sorted((p for p in passages if part(p["title"]) == name), key=order):
        if len(passage["questions"]) >= 4 and taken[passage["title"]] < per_article and len(chosen) < count:
            taken[passage["title"]] += 1
            chosen.append(passage)
    return chosen


def write(passages: list[dict], folder: Path, holdout: bool = False, halves: bool = False) -> None:
    """Write documents.jsonl and questions.jsonl, and with `holdout` every tenth question to heldout.jsonl instead.

    With `halves` each passage's first, third, fifth question, … stands in asked.jsonl too, with its answer as one text
    in asked-texts.jsonl; the others in unasked.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    documents, questions = [], []
    for number, passage in enumerate(passages):
        name = f"{number:03d}-{passage['title'].lower().replace(' ', '-')}"
        documents.append({"id": name, "title": passage["title"], "text": passage["context"]})
        questions += [
            {"document": name, "question": q["question"], "answers": [q["answer"]]} for q in passage["questions"]
        ]
    held = [q for i, q in enumerate(questions) if holdout and i % 10 == 9]
    kept = [q for i, q in enumerate(questions) if not (holdout and i % 10 == 9)]
    files = {"documents": documents, "questions": kept, **({"heldout": held} if holdout else {})}
    if halves:
        seen: Counter[str] = Counter()
        files |= {"asked": [], "unasked": []}
        for question in questions:
            files["unasked" if seen[question["document"]] % 2 else "asked"].append(question)
            seen[question["document"]] += 1
        asked = [(q["document"], f"{q['question']} {q['answers'][0]}") for q in files["asked"]]
        files["asked-texts"] = [{"document": document, "text": text} for document, text in asked]
    for file, records in files.items():
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
        print(f"{folder / file}.jsonl: {len(records)}")


def main() -> None:
    """Read the arguments and write the four folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, action="append", required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    target = load(given.target)
    source = [p for file in given.source for p in load(file)]
    write(source + deal(target, "source", 150, 24), given.out / "source", holdout=True)
    write(deal(target, "choice", 96, 12), given.out / "choice")
    read = deal(target, "report", 110, 5)
    write(read, given.out / "read")
    write(deal([p for p in target if p not in read], "report", 300, 20), given.out / "report")
    if given.evaluation:
        evaluation = load(given.evaluation)
        write(evaluation, given.out / "seal")
        write([p for p in evaluation if part(p["title"]) == "report"], given.out / "seal-report", halves=True)


if __name__ == "__main__":
    main()
