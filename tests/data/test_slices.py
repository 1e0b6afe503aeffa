import pytest

from skillgraft.data.documents import Document, read_documents
from skillgraft.data.slices import choose
from skillgraft.data.tasks import read_questions
from skillgraft.errors import DataError
from skillgraft.settings.base import parse_slice
from tests.recipes import write_jsonl


def documents(count):
    return [Document(str(i), "", "text") for i in range(count)]


def ids(chosen):
    return [document.id for document in chosen]


@pytest.mark.parametrize(("count", "parts"), [(7, 3), (4, 4), (10, 1), (11, 5)])
def test_parts_are_disjoint_complete_in_order_and_of_like_size(count, parts):
    made = [ids(choose(documents(count), part=f"{k}/{parts}")) for k in range(1, parts + 1)]
    assert [each for part in made for each in part] == ids(documents(count))
    assert max(map(len, made)) - min(map(len, made)) <= 1


def test_the_limit_comes_first():
    assert ids(choose(documents(9), 4, "2/2")) == ["2", "3"]
    assert ids(choose(documents(9), 4)) == ["0", "1", "2", "3"]
    assert ids(choose(documents(3))) == ["0", "1", "2"]


def test_what_renders_one_document_stays_together():
    rendered = [Document(f"{source}#{i}", "", "text", source) for i in range(2) for source in "abc"]
    assert ids(choose(rendered, part="1/3")) == ["a#0", "a#1"]
    assert ids(choose([Document("a", "", "text"), *rendered], part="2/3")) == ["b#0", "b#1"]


def test_renderings_are_read_with_what_they_render_and_questions_follow(tmp_path):
    plain = {"id": "a", "title": "", "text": "x"}
    write_jsonl(
        tmp_path / "documents.jsonl",
        [
            {**plain, "id": "a#rewrite-0", "source": "a", "style": "rewrite"},
            {**plain, "id": "b", "source": "https://example.org"},  # a user's own field, which says nothing here
        ],
    )
    read = read_documents(tmp_path)
    assert [document.origin for document in read] == ["a", "b"]
    file = tmp_path / "questions.jsonl"
    write_jsonl(file, [{"document": d, "question": "?", "answers": ["1"]} for d in "ab"])
    assert [q.document for q in read_questions(file, choose(read, part="1/2"))] == ["a"]


def test_more_parts_than_documents():
    with pytest.raises(DataError, match=r"part 3/3: 2 documents cannot be cut into 3 parts"):
        choose(documents(2), part="3/3")


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2", "01/2"])
def test_what_is_no_part(part):
    with pytest.raises(ValueError, match="must name a part such as 1/2"):
        parse_slice(part)
