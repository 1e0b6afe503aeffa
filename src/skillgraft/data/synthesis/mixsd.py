"""Answers mixed token by token from what a frozen model says with a fact in context and without it (MixSD).

Liu et al., arXiv 2605.16865, and its repository (jiarui-liu/MixSD): at every step t, on one shared answer so far,

    y_t = the naive conditional's token,  p(· | x, y_<t),   with probability λ (`naive_share`)
          the expert conditional's token, p(· | x⁺, y_<t),  otherwise;  x⁺ holds the fact

each token the likeliest, or sampled at a temperature. An answer that does not hold the gold one is written again, and
dropped after `attempts` tries. What is kept takes the gold answer's place in plain fine-tuning. Departures: an answer
passes by containment of the gold one, where the paper's repository compares a boxed answer exactly, and the fact may be
the question's document.

Draws depend on the recipe's seed, the question and the attempt alone. Both conditionals of a batch go through the model
as one batch of twice the rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.data.documents import Document
from skillgraft.data.metrics import containment
from skillgraft.data.synthesis.generation import GenerationCache
from skillgraft.data.synthesis.local_writer import GumbelNoise
from skillgraft.data.synthesis.teacher_prompts import by_document, with_context
from skillgraft.data.tasks import Question
from skillgraft.errors import DataError
from skillgraft.models.generation import answer_text, end_tokens
from skillgraft.models.prompts import as_prompt, encode_prompts
from skillgraft.support.progress import Progress


@dataclass(frozen=True)
class Mixed:
    """One answer, token by token: the text, whether each token was the naive one, and tokens that the model read."""

    text: str
    naive: tuple[bool, ...]
    tokens: int


@torch.no_grad()
def mix_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[str],
    shown: Sequence[str],
    seeds: Sequence[int],
    *,
    naive_share: float,
    temperature: float,
    max_new_tokens: int,
) -> list[Mixed]:
    """Return one mixed answer for each question `asked`, whose expert conditional reads `shown` instead."""
    rows = len(asked)
    batch = encode_prompts(tokenizer, [as_prompt(tokenizer, text) for text in (*asked, *shown)]).to(model.device)
    mask, step, past = batch["attention_mask"], batch["input_ids"], None
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    draws = [random.Random(seed) for seed in seeds]
    noise = GumbelNoise(seeds)
    ends = {*end_tokens(model, tokenizer), tokenizer.pad_token_id}
    chosen: list[list[int]] = [[] for _ in asked]
    naive: list[list[bool]] = [[] for _ in asked]
    done = [False] * rows
    for _ in range(max_new_tokens):
        output = model(
            input_ids=step,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past, logits = output.past_key_values, output.logits[:, -1].float()
        picks = [draw.random() < naive_share for draw in draws]
        scores = torch.where(torch.tensor(picks, device=logits.device)[:, None], logits[:rows], logits[rows:])
        if temperature > 0:
            scores = noise(step, scores / temperature)
        words = scores.argmax(dim=-1)
        for row, (word, pick) in enumerate(zip(words.tolist(), picks, strict=True)):
            if not done[row]:
                naive[row].append(pick)
                chosen[row].append(word)
                done[row] = word in ends
        if all(done):
            break
        step = torch.cat([words, words])[:, None]
        mask = torch.cat([mask, torch.ones_like(step)], dim=1)
        positions = positions[:, -1:] + 1
    read = batch["attention_mask"].sum(dim=1).tolist()
    return [
        Mixed(
            answer_text(tokenizer, [word for word in chosen[row] if word not in ends]),
            tuple(naive[row]),
            read[row] + read[rows + row] + 2 * len(chosen[row]),
        )
        for row in range(rows)
    ]


def mix_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    documents: Sequence[Document],
    work: Path,
    *,
    teacher_sees: str,
    naive_share: float,
    attempts: int,
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return for every question its mixed answer, whether it holds the gold one, and in which attempt it came.

    What is written is kept in `work`, batch by batch, and not written again.

    Raises:
        DataError: no questions, or one about a document that is not there.
    """
    pairs = by_document(questions, documents, teacher_sees)
    cache = GenerationCache(work)
    if naive_share in (0.0, 1.0) and temperature == 0:
        attempts = 1  # nothing is drawn: every try is the same
    for start in range(0, len(pairs), batch_size):
        names = range(start, min(start + batch_size, len(pairs)))
        open_rows = [row for row in names if str(row) not in cache.by_id]
        finished: dict[int, dict[str, Any]] = {}
        tokens = dict.fromkeys(open_rows, 0)
        for attempt in range(1, attempts + 1):
            waiting = [row for row in open_rows if row not in finished]
            if not waiting:
                break
            written = mix_answers(
                model,
                tokenizer,
                [pairs[row][0].question for row in waiting],
                [with_context(*pairs[row], teacher_sees) for row in waiting],
                [_seed(seed, pairs[row][0], row, attempt) for row in waiting],
                naive_share=naive_share,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
            )
            for row, mixed in zip(waiting, written, strict=True):
                tokens[row] += mixed.tokens
                right = containment(mixed.text, pairs[row][0].answers) == 1
                if right or attempt == attempts:
                    share = sum(mixed.naive) / max(len(mixed.naive), 1)
                    finished[row] = {
                        **{"text": mixed.text, "right": right, "attempts": attempt},
                        **{"naive_share": round(share, 4), "tokens": tokens[row]},
                    }
        cache.add({"id": str(row), **finished[row]} for row in sorted(finished))
        progress(names.stop, len(pairs))
    return [cache.by_id[str(row)] for row in range(len(pairs))]


def write_mixed(questions: Sequence[Question], answers: Sequence[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Make the directory `out` with questions.jsonl (mixed answers) and dropped.jsonl; return counts and means.

    Raises:
        DataError: no answer holds its gold one.
    """
    made = [
        {
            **{"id": f"mixed-{number}", "document": question.document, "question": question.question},
            **{"answers": [answer["text"]], "gold": list(question.answers)},
            **{name: answer[name] for name in ("attempts", "naive_share")},
        }
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]
    right = [record for record, answer in zip(made, answers, strict=True) if answer["right"]]
    if not right:
        raise DataError(
            f"none of {len(made)} mixed answers holds its gold answer; lower naive_share, raise attempts, or let the "
            "teacher see both document and answer"
        )
    out.mkdir()
    wrong = [record for record, answer in zip(made, answers, strict=True) if not answer["right"]]
    for name, records in (("questions", right), ("dropped", wrong)):
        if records:
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {
        "questions": len(made),
        "kept": len(right),
        "attempts": sum(record["attempts"] for record in right) / len(right),
        "naive_share": sum(record["naive_share"] for record in right) / len(right),
        "tokens": sum(answer["tokens"] for answer in answers),
    }


def _seed(seed: int, question: Question, row: int, attempt: int) -> int:
    what = [seed, question.document, question.question, row, attempt]
    return int.from_bytes(blake3(json.dumps(what).encode()).digest()[:4], "big") >> 1
