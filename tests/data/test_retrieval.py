"""BM25 against the published formula written out, and what retrieval is scored by."""

import math

import pytest

from skillgraft.data.documents import Document
from skillgraft.data.retrieval import Chunk, cut, rank, recall, searched
from skillgraft.data.tasks import Question
from skillgraft.errors import DataError
from skillgraft.evals.in_context import as_context, draw_examples, find_chunks, read_examples
from skillgraft.settings.evaluation import EvalRow
from tests.recipes import write_jsonl

TEXTS = [
    "The harbour of Vell was built in 1900.",
    "The lighthouse of Orm was built in 1901, and the lighthouse keeper lives there.",
    "Tarn has no harbour. Tarn has a lighthouse, a market and a long history of storms, ships and sailors.",
    "灯台は島にある。",
    "Issk.",
]
CHUNKS = [Chunk(str(i), text) for i, text in enumerate(TEXTS)]


def by_the_formula(question, texts, k1=1.5, b=0.75):
    """Lucene's form of BM25, word by word of the question, repeated words counting again."""
    split = [searched(text) for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for own in split:
        total = 0.0
        for word in searched(question):
            holds = sum(word in other for other in split)
            idf = math.log(1 + (len(split) - holds + 0.5) / (holds + 0.5))
            tf = own.count(word)
            total += idf * tf / (tf + k1 * (1 - b + b * len(own) / mean))
        scores.append(total)
    return scores


@pytest.mark.parametrize(
    "question",
    [
        "Who built the harbour of Vell?",
        "Where is the lighthouse keeper?",
        "lighthouse lighthouse market",
        "灯台",
        "Issk?",
    ],
)
def test_the_order_is_that_of_the_formula(question):
    scores = by_the_formula(question, TEXTS)
    expected = [i for i in sorted(range(len(TEXTS)), key=lambda i: -scores[i]) if scores[i] > 0]
    ((*found,),) = rank(CHUNKS, [Question("0", question, ("x",))], top_k=5)
    assert [int(chunk.document) for chunk in found] == expected
    assert rank(CHUNKS, [Question("0", question, ("x",))], top_k=1) == [found[:1]]


def test_the_words_that_are_searched():
    assert searched("Vell's well-known Harbour, 1900!") == ["vell", "s", "well", "known", "harbour", "1900"]
    assert searched("灯台は") == list("灯台は")


def test_equal_scores_keep_the_documents_order_and_no_shared_word_finds_nothing():
    same = [Chunk("a", "harbour"), Chunk("b", "harbour"), Chunk("c", "storm")]
    first, second, third = rank(same, [Question("a", q, ("x",)) for q in ("harbour", "?", "moon")], top_k=3)
    assert [chunk.document for chunk in first] == ["a", "b"]
    assert second == third == []


def test_recall_and_answers_by_hand():
    questions = [Question("0", "q", ("1900",)), Question("1", "q", ("1999", "Keeper")), Question("2", "q", ("no",))]
    found = [[CHUNKS[2], CHUNKS[0]], [CHUNKS[0]], []]
    assert recall(found, questions) == {"recall": [1.0, 0.0, 0.0], "answer_in_context": [1.0, 0.0, 0.0]}
    assert recall([[CHUNKS[1]]], questions[1:2])["answer_in_context"] == [1.0]  # any gold answer will do


def test_chunks_carry_their_title_and_together_hold_the_text():
    document = Document("d", "Vell", "one two three four five six seven")

    def by_word(text):
        starts = [i for i in range(len(text)) if text[i] != " " and (i == 0 or text[i - 1] == " ")]
        return [(start, (text + " ").index(" ", start)) for start in starts]

    found = cut([document], by_word, size=4, overlap=1)
    assert [chunk.text for chunk in found] == ["Vell\n\none two three four", "Vell\n\nfour five six seven"]
    assert {chunk.document for chunk in found} == {"d"}
    assert as_context(found) == "Vell\n\none two three four\n\nVell\n\nfour five six seven"


def test_gold_is_the_whole_document_of_each_question():
    documents = [Document("a", "A", "one"), Document("b", "", "two")]
    row = EvalRow(model="base", context="gold")
    asked = [Question("b", "q", ("x",)), Question("a", "q", ("x",))]
    assert [as_context(found) for found in find_chunks(row, documents, lambda text: [], asked)] == ["two", "A\n\none"]
    with pytest.raises(DataError, match="there is no document 'c'"):
        find_chunks(row, documents, lambda text: [], [Question("c", "q", ("x",))])


def test_examples_are_drawn_by_seed_and_question_alone(tmp_path):
    write_jsonl(tmp_path / "q.jsonl", [{"document": "d", "question": f"q{i}?", "answers": [f"a{i}"]} for i in range(9)])
    evaluated = [Question("e", f"other {i}?", ("x",)) for i in range(30)]
    pool = read_examples(tmp_path / "q.jsonl", 3, evaluated)
    drawn = [draw_examples(pool, 3, question, seed=0) for question in evaluated]
    assert drawn == [draw_examples(pool, 3, question, seed=0) for question in evaluated]
    assert drawn != [draw_examples(pool, 3, question, seed=1) for question in evaluated]
    assert all(len(set(shots)) == 3 for shots in drawn)
    assert {shot for shots in drawn for shot in shots} == {(f"q{i}?", f"a{i}") for i in range(9)}


def test_an_example_that_is_evaluated_is_refused(tmp_path):
    file = tmp_path / "q.jsonl"
    write_jsonl(file, [{"document": "d", "question": "Who built the harbour?", "answers": ["Ann"]}])
    read_examples(file, 1, [Question("e", "Who built the harbour?", ("Bob",))])  # another harbour
    with pytest.raises(DataError, match=r"holds a question that is evaluated: 'Who built the harbour\?'"):
        read_examples(file, 1, [Question("e", "who built  harbour", ("ann.",))])
    with pytest.raises(DataError, match="that is evaluated"):
        read_examples(file, 1, [Question("d", "Who built the Harbour?", ("A. Smith",))])
    with pytest.raises(DataError, match="has 1 questions, but shots: 2"):
        read_examples(file, 2, [])
