import json

import pytest

from skillgraft.data.documents import read_documents
from skillgraft.data.tasks import check_questions, read_questions
from skillgraft.errors import DataError, MissingPathError


def write(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


DOCUMENT = {"id": "a", "title": "A", "text": "Alpha."}
QUESTION = {"document": "a", "question": "What?", "answers": ["Alpha"]}


def test_folder_of_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "one.md").write_text("# The title\n\nThe text.\n")
    (tmp_path / "sub" / "second-file.txt").write_text("\ufeffJust text.")
    (tmp_path / "ignored.png").write_bytes(b"\xff\xd8")
    documents = read_documents(tmp_path)
    assert [(d.id, d.title, d.text) for d in documents] == [
        ("one", "The title", "The text."),
        ("sub/second-file", "second file", "Just text."),
    ]
    assert documents[0].rendered() == "The title\n\nThe text."


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    (tmp_path / "documents.jsonl").write_text('{"id": "a", "text": "one\u2028two"}\n', encoding="utf-8")
    assert read_documents(tmp_path)[0].text == "one\u2028two"


def test_jsonl_and_its_folder_are_the_same(tmp_path):
    file = write(tmp_path / "documents.jsonl", DOCUMENT, {"id": "b", "text": "Beta."})
    assert read_documents(file) == read_documents(tmp_path)
    assert [d.id for d in read_documents(file, limit=1)] == ["a"]
    assert read_documents(file)[1].rendered() == "Beta."


def test_questions(tmp_path):
    file = write(tmp_path / "questions.jsonl", QUESTION, {"document": "a", "question": "Who?", "answers": "one"})
    assert [q.answers for q in read_questions(file)] == [("Alpha",), ("one",)]
    assert read_questions(tmp_path) == read_questions(file)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([DOCUMENT, DOCUMENT], "has the id 'a' twice"),
        ([{"id": "a", "text": "  "}], "'a' in .* is empty"),
        ([{"id": [3], "text": "x"}], "line 1: 'id' is .3., expected a string"),
        (["{broken"], "line 1: not JSON"),
        (["[1]"], "line 1: got a list"),
        ([r'{"id": "a", "text": "\ud83d"}'], "line 1: contains a lone surrogate"),
        ([], "holds none"),
        ([r'{"id": "a", "text": "x\u0000y"}'], "'a' in .* holds a zero character"),
        (["[" * 100_000], "line 1: not JSON"),
        (['{"id": "a", "text": "x", "size": ' + "9" * 5000 + "}"], "line 1: not JSON"),
    ],
)
def test_bad_documents(tmp_path, records, message):
    with pytest.raises(DataError, match=message):
        read_documents(write(tmp_path / "documents.jsonl", *records))


def test_missing_empty_and_binary(tmp_path):
    with pytest.raises(MissingPathError, match="nowhere does not exist"):
        read_documents(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds none"):
        read_documents(tmp_path)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(DataError, match=r"binary.txt: not UTF-16"):
        read_documents(tmp_path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**QUESTION, "answers": []}, "'answers' is"),
        ({**QUESTION, "answers": ["", "x"]}, "'answers' is"),
        ({**QUESTION, "question": " "}, "'question' is empty"),
        ({"question": "What?", "answers": ["x"]}, "'document' is None"),
    ],
)
def test_bad_questions(tmp_path, record, message):
    with pytest.raises(DataError, match=message):
        read_questions(write(tmp_path / "questions.jsonl", record))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'a' in .* is empty"),
        (b"# A title alone\n", "'a' in .* is empty"),
        (b"\xff\xd8\xff\xe0 a picture", "a.md: not UTF-8 text .* at byte 0"),
        (b"good, then a cut one: \xe2\x82", "a.md: not UTF-8 text .* at byte 22"),
        (b"a\x00program", "a.md: not text .a zero byte after 1 characters"),
        ("UTF-16 without a mark".encode("utf-16-le"), "a.md: not text .a zero byte"),
    ],
)
def test_files_that_are_no_documents(tmp_path, content, message):
    (tmp_path / "a.md").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_documents(tmp_path)


def test_two_files_of_one_name(tmp_path):
    (tmp_path / "a.md").write_text("One.")
    (tmp_path / "a.txt").write_text("Two.")
    with pytest.raises(DataError, match=r"the id 'a' twice; .* a file's id is its name without its suffix"):
        read_documents(tmp_path)


def test_large_documents_and_many_languages(tmp_path):
    large = "Ein Satz, 一文, جملة, предложение 🚢. " * 30_000
    write(tmp_path / "documents.jsonl", {"id": "large", "text": large}, {"id": "日本", "text": "短い文。"})
    documents = read_documents(tmp_path)
    assert len(documents[0].text) > 1_000_000
    assert documents[0].text == large
    assert documents[1].id == "日本"


def test_questions_on_no_known_document(tmp_path):
    documents = read_documents(write(tmp_path / "documents.jsonl", DOCUMENT))
    file = write(tmp_path / "questions.jsonl", {**QUESTION, "document": "zebra"})
    with pytest.raises(DataError, match="names no known document: it asks about 'zebra'"):
        read_questions(file, documents)
    with pytest.raises(DataError, match="'zebra', which is not among the 1 documents"):
        check_questions(file, read_questions(file), documents)
