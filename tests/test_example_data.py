"""The almanac and the retention questions hold what their descriptions promise."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALMANAC = ROOT / "examples" / "almanac"
RETENTION = ROOT / "src" / "skillgraft" / "evals" / "retention.jsonl"
HALVES = ("source", "target")


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(text):
    return re.findall(r"[^\W_]+", text.casefold())


def occurs(needle, haystack):
    """Whether the words of one text occur next to each other in another."""
    needle, haystack = words(needle), words(haystack)
    n = len(needle)
    return n > 0 and any(haystack[i : i + n] == needle for i in range(len(haystack) - n + 1))


DOCUMENTS = {half: read(ALMANAC / half / "documents.jsonl") for half in HALVES}
QUESTIONS = {half: read(ALMANAC / half / "questions.jsonl") for half in HALVES}
TEXTS = {half: {d["id"]: d["text"] for d in DOCUMENTS[half]} for half in HALVES}
ITEMS = read(RETENTION)


def test_both_halves_hold_enough_documents():
    assert {half: len(DOCUMENTS[half]) for half in HALVES} == {"source": 24, "target": 24}


@pytest.mark.parametrize("half", HALVES)
def test_documents_have_the_declared_fields_and_length(half):
    for document in DOCUMENTS[half]:
        assert list(document) == ["id", "title", "text"]
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", document["id"]), document["id"]
        assert document["title"].strip()
        assert 80 <= len(document["text"].split()) <= 200, document["id"]


@pytest.mark.parametrize("half", HALVES)
def test_questions_have_the_declared_fields(half):
    for row in QUESTIONS[half]:
        assert list(row) == ["document", "question", "answers"]
        assert row["question"].endswith("?"), row
        assert row["answers"], row
        assert len(set(row["answers"])) == len(row["answers"]), row
        assert all(answer.strip() == answer != "" for answer in row["answers"]), row


def test_ids_and_titles_are_unique_and_disjoint_between_halves():
    for field in ("id", "title", "text"):
        counts = Counter(document[field] for half in HALVES for document in DOCUMENTS[half])
        assert [value for value, n in counts.items() if n > 1] == []


@pytest.mark.parametrize("half", HALVES)
def test_every_question_names_a_known_document_and_each_has_enough(half):
    counts = Counter(row["document"] for row in QUESTIONS[half])
    assert set(counts) == set(TEXTS[half])
    assert min(counts.values()) >= 5


def test_questions_are_unique():
    counts = Counter(" ".join(words(row["question"])) for half in HALVES for row in QUESTIONS[half])
    assert [question for question, n in counts.items() if n > 1] == []


@pytest.mark.parametrize("half", HALVES)
def test_no_two_questions_about_a_document_have_the_same_answer(half):
    counts = Counter((row["document"], row["answers"][0].casefold()) for row in QUESTIONS[half])
    assert [key for key, n in counts.items() if n > 1] == []


@pytest.mark.parametrize("half", HALVES)
def test_the_first_answer_occurs_in_the_document(half):
    missing = [
        row for row in QUESTIONS[half] if row["answers"][0].casefold() not in TEXTS[half][row["document"]].casefold()
    ]
    assert missing == []


@pytest.mark.parametrize("half", HALVES)
def test_answers_are_short(half):
    assert [row for row in QUESTIONS[half] if not 1 <= len(row["answers"][0].split()) <= 5] == []


@pytest.mark.parametrize("half", HALVES)
def test_a_question_does_not_contain_its_answer(half):
    given_away = [
        (row["question"], answer)
        for row in QUESTIONS[half]
        for answer in row["answers"]
        if len(answer) > 3 and occurs(answer, row["question"])
    ]
    assert given_away == []


@pytest.mark.parametrize("half", HALVES)
def test_a_question_names_its_subject(half):
    """Every subject's id holds a word that no other document's does; its questions must contain such a word."""
    seen = Counter(word for h in HALVES for document in DOCUMENTS[h] for word in set(words(document["id"])))
    unnamed = [
        row["question"]
        for row in QUESTIONS[half]
        if not any(seen[word] == 1 and word in words(row["question"]) for word in words(row["document"]))
    ]
    assert unnamed == []


@pytest.mark.parametrize("half", HALVES)
def test_a_question_shares_no_eight_words_with_its_document(half):
    copied = []
    for row in QUESTIONS[half]:
        asked = words(row["question"])
        copied += [
            asked[i : i + 8]
            for i in range(len(asked) - 7)
            if occurs(" ".join(asked[i : i + 8]), TEXTS[half][row["document"]])
        ]
    assert copied == []


def test_retention_items_have_the_declared_fields():
    for item in ITEMS:
        assert list(item) == ["id", "question", "choices", "answer"]
        assert item["question"].endswith("?"), item
        assert type(item["answer"]) is int, item
        assert 0 <= item["answer"] < 4, item
        assert len(item["choices"]) == len({choice.casefold() for choice in item["choices"]}) == 4, item


def test_retention_is_large_enough_and_without_duplicates():
    assert len(ITEMS) >= 60
    assert len({item["id"] for item in ITEMS}) == len(ITEMS)
    assert len({" ".join(words(item["question"])) for item in ITEMS}) == len(ITEMS)


def test_retention_answers_are_spread_over_the_positions():
    counts = Counter(item["answer"] for item in ITEMS)
    for position in range(4):
        assert 0.15 <= counts[position] / len(ITEMS) <= 0.35, counts
