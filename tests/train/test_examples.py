import random

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from skillgraft.data.documents import Document
from skillgraft.data.tasks import Question
from skillgraft.errors import DataError, RecipeError, TrainingError
from skillgraft.models.loading import load_model
from skillgraft.models.prompts import as_prompt, prompt_ids
from skillgraft.settings.text import TextSettings, check_text
from skillgraft.train.examples import UNLEARNT, derange, document_rows, learnt_tokens, question_rows, replay_rows
from tests.tiny import END, tiny_checkpoint, tiny_tokenizer

LONG = Document("a", "Title", "the island was built in the year " * 30)


def text(**settings):
    return TextSettings.model_validate(settings)


def as_trl_makes_them(tmp_path, examples, **arguments):
    """What TRL's own preparation makes of plain examples: the reference for ours."""
    model = load_model(tiny_checkpoint(tmp_path / "reference"))
    args = SFTConfig(output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none", **arguments)
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(examples), processing_class=tiny_tokenizer()
    )
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in trainer.train_dataset]


def test_a_document_is_what_trl_makes_of_its_text(tmp_path):
    documents = [
        Document("a", "Vell", "The harbour of Vell was built in 1901."),
        Document("b", "", "No title; früh, 早い, рано, مبكر, 🚢 of several scripts."),
        Document("c", "A title with\ttab ", "  text that begins with spaces"),
    ]
    expected = as_trl_makes_them(tmp_path, [{"text": document.rendered() + END} for document in documents])
    assert document_rows(tiny_tokenizer(), documents, 1024) == expected


def test_questions_are_what_trl_makes_of_prompt_and_completion(tmp_path):
    tokenizer = tiny_tokenizer()
    questions = [Question("a", "When was it built?", ("1901", "in 1901")), Question("b", "Who? 早い", ("the king",))]
    examples = [
        {
            "prompt": as_prompt(tokenizer, each.question),
            "completion": [{"role": "assistant", "content": each.answers[0]}],
        }
        for each in questions
    ]
    assert question_rows(tokenizer, questions, 1024) == as_trl_makes_them(tmp_path, examples)


def test_only_answers_are_learnt_after_the_prompt_that_evaluation_asks():
    tokenizer = tiny_tokenizer()
    question = Question("a", "When was the harbour of Vell built?", ("1901",))
    [row] = question_rows(tokenizer, [question], None)
    [prompt] = prompt_ids(tokenizer, [as_prompt(tokenizer, question.question)])
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [UNLEARNT] * len(prompt)
    assert tokenizer.decode(row["labels"][len(prompt) :]) == f"1901{END}\n"


def test_without_a_chat_template(monkeypatch):
    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(tokenizer, "chat_template", None)
    [row] = question_rows(tokenizer, [Question("a", "When?", ("1901",))], None)
    assert tokenizer.decode(row["input_ids"]).endswith(f"Question: When?\nAnswer: 1901{END}")
    assert tokenizer.decode([label for label in row["labels"] if label != UNLEARNT]) == f" 1901{END}"


def test_a_template_that_begins_a_finished_answer_otherwise(monkeypatch):
    tokenizer = tiny_tokenizer()
    loop = "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"
    template = loop + "{% if add_generation_prompt %}think:{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    [row] = question_rows(tokenizer, [Question("a", "When?", ("1901",))], None)
    assert tokenizer.decode(row["input_ids"]).endswith(f"When?\nthink:1901{END}")


def test_an_answer_that_would_be_cut_off():
    with pytest.raises(TrainingError, match=r"question 'When was it.* on 'a' takes \d+ tokens .* max_length = 12"):
        question_rows(tiny_tokenizer(), [Question("a", "When was it built?", ("1901",))], 12)


def test_shuffled_answers_keep_their_questions():
    tokenizer = tiny_tokenizer()
    questions = [Question("a", f"Question {i}?", (f"answer {i}",)) for i in range(5)]
    plain, shuffled = question_rows(tokenizer, questions, None), question_rows(tokenizer, questions, None, True, 3)
    learnt = [[label for label in row["labels"] if label != UNLEARNT] for row in plain]
    moved = [[label for label in row["labels"] if label != UNLEARNT] for row in shuffled]
    assert sorted(learnt) == sorted(moved)
    assert all(a != b for a, b in zip(learnt, moved, strict=True))


def test_derange_moves_every_answer():
    answers = [str(i) for i in range(20)]
    moved = derange(answers, seed=1)
    assert sorted(moved) == sorted(answers)
    assert all(a != b for a, b in zip(answers, moved, strict=True))
    assert moved == derange(answers, seed=1) != derange(answers, seed=2)


@pytest.mark.parametrize("overlap", [0, 7])
def test_chunks_hold_the_whole_text_under_the_title(overlap):
    tokenizer = tiny_tokenizer()
    whole = tokenizer(LONG.rendered())["input_ids"]
    title = tokenizer("Title\n\n")["input_ids"]
    rows = document_rows(tokenizer, [LONG], 512, text(chunk_tokens=64, overlap_tokens=overlap))
    parts = [row["input_ids"] for row in rows]
    assert len(parts) == -(-(len(whole) - len(title) - overlap) // (64 - len(title) - 1 - overlap))
    assert all(part[: len(title)] == title and part[-1] == tokenizer.eos_token_id for part in parts)
    assert [len(part) for part in parts[:-1]] == [64] * (len(parts) - 1)
    rebuilt = title + [token for i, part in enumerate(parts) for token in part[len(title) + (overlap if i else 0) : -1]]
    assert rebuilt == whole
    assert learnt_tokens(rows) == sum(map(len, parts))


def test_the_trainers_limit_cuts_without_settings():
    tokenizer = tiny_tokenizer()
    assert document_rows(tokenizer, [LONG], 64) == document_rows(tokenizer, [LONG], 512, text(chunk_tokens=64))
    [whole] = document_rows(tokenizer, [LONG], None)
    assert whole["input_ids"][:-1] == tokenizer(LONG.rendered())["input_ids"]


def test_a_masked_title_is_read_and_not_learnt():
    tokenizer = tiny_tokenizer()
    rows = document_rows(tokenizer, [LONG], 64, text(mask_title=True))
    title = tokenizer("Title\n\n")["input_ids"]
    for row, plain in zip(rows, document_rows(tokenizer, [LONG], 64), strict=True):
        assert row["input_ids"] == plain["input_ids"]
        assert row["labels"] == [UNLEARNT] * len(title) + plain["input_ids"][len(title) :]
    [untitled] = document_rows(tokenizer, [Document("b", "", "text")], 64, text(mask_title=True))
    assert untitled["labels"] == untitled["input_ids"]


def test_a_title_that_leaves_no_room():
    with pytest.raises(TrainingError, match="title of 'a' alone fills"):
        document_rows(tiny_tokenizer(), [Document("a", "long title " * 50, "the island " * 50)], 64)
    with pytest.raises(TrainingError, match="beside an overlap of 60; raise max_length"):
        document_rows(tiny_tokenizer(), [LONG], 64, text(overlap_tokens=60))


def test_a_million_characters_of_mixed_scripts():
    """Every token once under its title, whatever it is made of."""
    tokenizer = tiny_tokenizer()
    parts = ["the island was built ", "Die Straße überquerte ", "島は早い。", "остров ", "🚢"]
    body = "".join(random.Random(0).choices(parts, k=100_000))[:1_000_000]
    assert len(body) == 1_000_000
    document = Document("a", "Insel 島", body.strip())
    rows = document_rows(tokenizer, [document], 1024)
    header = len(tokenizer("Insel 島\n\n")["input_ids"])
    read = [token for row in rows for token in row["input_ids"][header:-1]]
    assert tokenizer.decode(read) == body.strip()
    assert max(len(row["input_ids"]) for row in rows) == 1024


def test_chunk_settings_are_checked_before_anything_runs():
    with pytest.raises(RecipeError, match=r"chunk_tokens: 600 is more than trainer\.max_length = 512"):
        check_text(text(chunk_tokens=600), 512)
    with pytest.raises(RecipeError, match="overlap_tokens: 512 leaves rows of 512 tokens nothing new"):
        check_text(text(overlap_tokens=512), 512)
    check_text(text(chunk_tokens=512, overlap_tokens=511), 512)
    check_text(text(chunk_tokens=600), None)


def test_replay_is_exact_and_follows_the_seed():
    tokenizer = tiny_tokenizer()
    texts = [" ".join(f"harbour-{i}-{j}" for j in range(5 + i)) for i in range(20)]
    rows = replay_rows(tokenizer, texts, 500, 64, seed=1)
    assert sum(len(row["input_ids"]) for row in rows) == 500
    assert all(row["labels"] == row["input_ids"] and len(row["input_ids"]) <= 64 for row in rows)
    assert rows == replay_rows(tokenizer, texts, 500, 64, seed=1) != replay_rows(tokenizer, texts, 500, 64, seed=2)
    shorter = replay_rows(tokenizer, texts, 300, 64, seed=1)
    assert shorter[:-1] == rows[: len(shorter) - 1]
    said = [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in rows]
    assert len(set(said)) == len(said)  # without replacement
    assert all(any(part in whole for whole in texts) for part in said)
    assert replay_rows(tokenizer, texts, 0, 64, seed=1) == []
    assert sum(len(row["input_ids"]) for row in replay_rows(tokenizer, texts, 65, 64, seed=1)) in (64, 65)


def test_less_replay_than_asked_for():
    with pytest.raises(
        DataError, match=r"replay: the text gives \d+ tokens and 5000 are asked for; lower replay.ratio"
    ):
        replay_rows(tiny_tokenizer(), ["who built the harbour"], 5000, 64, seed=0)
