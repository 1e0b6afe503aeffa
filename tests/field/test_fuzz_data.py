"""Folders of data and YAML files made at random: a result or one sentence, whatever stands in them.

`SKILLGRAFT_FUZZ=2500` tries that many of each.
"""

import json
import os
import shutil
from datetime import timedelta

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillgraft import run
from skillgraft.data.documents import read_documents
from skillgraft.data.metrics import METRICS
from skillgraft.data.replay import read_replay
from skillgraft.data.tasks import read_questions
from skillgraft.data.text_files import passed_over
from skillgraft.errors import SkillgraftError
from skillgraft.support.yaml_file import read_yaml
from tests.field.bases import recipe_on
from tests.field.test_data_formats import HTML, TABLES, pdf, word
from tests.recipes import tiny_recipe

EXAMPLES = int(os.environ.get("SKILLGRAFT_FUZZ", "60"))
FUZZ = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=timedelta(seconds=20),
    database=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
QUESTION = {"document": "vell", "question": "When?", "answers": ["1900"]}
SQUAD = {"data": [{"title": "v", "paragraphs": [{"context": "In 1900.", "qas": [{"question": "W", "answers": []}]}]}]}
TEXTS = [
    "",
    " ",
    "\n",
    "# Vell\n\nBuilt.",
    "Vell\n====\nBuilt.",
    HTML,
    "<p>" * 3000,
    "&#0;&#xD800;&bad;",
    "\x00",
    "\ud7ff",
]
NAMES = [
    *("a.md", "a.txt", "b.markdown", "c.rst", "d.html", "e.htm", "f.pdf", "g.docx", "h.pptx", "notes", ".hidden.md"),
    *("documents.jsonl", "documents.csv", "documents.json", "documents.parquet", "documents.tsv", "questions.jsonl"),
    *("questions.csv", "sub/a.md", "sub/ä.md", "名前.md", "x.jsonl.gz", "a b.txt", "__MACOSX/a.md", "Thumbs.db"),
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=12),
    st.lists(st.text(max_size=4), max_size=3),
    st.dictionaries(st.sampled_from(["text", "value", "aliases", "x"]), st.lists(st.text(max_size=3), max_size=2)),
)
KEYS = st.sampled_from(
    ["id", "title", "text", "document", "question", "answers", "answer", "qas", "style", "source", "x"]
)
RECORDS = st.lists(st.dictionaries(KEYS, VALUES, max_size=5), max_size=4)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Whole files of every kind, as bytes."""
    folder = tmp_path_factory.mktemp("samples")
    contents = [text.encode("utf-8", "surrogatepass") for text in TEXTS]
    contents += [pdf("Built in 1900."), json.dumps(SQUAD).encode(), json.dumps(QUESTION).encode() * 2]
    contents += [text.encode("utf-16", "surrogatepass") for text in TEXTS[:6]]
    for name, write in TABLES.items():
        write(folder / name)
        contents.append((folder / name).read_bytes())
    word(folder / "a.docx")
    contents.append((folder / "a.docx").read_bytes())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([QUESTION] * 3), folder / "q.parquet")
    contents.append((folder / "q.parquet").read_bytes())
    return contents


def content(draw, samples):
    """Draw a whole file, one that is damaged, random records or random bytes."""
    kind = draw(st.sampled_from(["whole", "damaged", "damaged", "records", "lines", "csv", "bytes"]))
    if kind == "records":
        return json.dumps(draw(RECORDS)).encode()
    if kind == "lines":
        return "\n".join(json.dumps(each) for each in draw(RECORDS)).encode()
    if kind == "csv":
        cells = st.text('ab,;"\t\n\r', max_size=6)
        return "\n".join(",".join(row) for row in draw(st.lists(st.lists(cells, max_size=4), max_size=4))).encode()
    if kind == "bytes":
        return draw(st.binary(max_size=60))
    whole = draw(st.sampled_from(samples))
    if kind == "damaged" and whole:
        at = draw(st.integers(0, len(whole) - 1))
        piece = draw(st.binary(max_size=4))
        whole = draw(
            st.sampled_from(
                [whole[:at], whole[:at] + piece + whole[at + len(piece) :], whole[:at] + piece + whole[at:]]
            )
        )
    return whole


def in_a_sentence(read):
    """Return what `read` gives, None where it refuses in one line."""
    try:
        return read()
    except SkillgraftError as error:
        said = str(error)
    assert said.strip()
    assert len(said) < 3000
    assert "\n" not in said, said
    return None


@FUZZ
@given(data=st.data())
def test_data_is_read_or_refused_in_a_sentence(samples, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("data")
    try:
        for name in data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content(data.draw, samples))
        for path in (folder, *(file for file in folder.rglob("*") if file.is_file())):
            documents = in_a_sentence(lambda path=path: read_documents(path))
            if documents is not None:
                assert len({document.id for document in documents}) == len(documents)
                assert all(document.text.strip() for document in documents)
                json.dumps([document.text for document in documents]).encode()
            questions = in_a_sentence(lambda path=path: read_questions(path))
            for question in questions or ():
                assert question.question.strip()
                for metric in METRICS.values():
                    assert metric("", question.answers) == 0.0
                    assert metric(question.answers[0], question.answers) in (0.0, 1.0)
            assert isinstance(in_a_sentence(lambda path=path: read_replay(path)) or [], list)
            assert passed_over(path) is not None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


LINES = [
    *(
        "name: tiny",
        "base: ./base",
        "stages:",
        "  a: {kind: sft}",
        "\tname: x",
        "name: 'x",
        "- a",
        "---",
        "...",
        "name: &a x",
    ),
    *(
        "b: *a",
        "c: *c",
        "<<: *a",
        "? x",
        "name: [",
        "x: !!python/object/apply:os.system [ls]",
        "x: !!binary //4=",
        "x: 1e5",
    ),
    *(
        "on: off",
        "no: yes",
        "2020-01-01: x",
        "1: 2",
        "null: x",
        "~: y",
        "x: .inf",
        "x: 0o17",
        "x: 017",
        "x: 1_000",
        "# c",
    ),
    *(
        "name: “tiny”",
        "\ufeffname: x",
        "name: \u0085",
        "x: |",
        "  text",
        "x: >-",
        "x: {a: {b: {c: [1, 2]}}}",
        "a: a: a",
        "%YAML 9",
    ),
    *(
        "x: " + "[" * 2000,
        "x: " + "a" * 5000,
        "\x00",
        "\x07",
        "x: \ud7ff",
        "a: &a [*a, *a]",
        "name: tiny # no",
        "x:y",
        "{",
        "}",
    ),
]


@FUZZ
@given(data=st.data())
def test_yaml_is_read_or_refused_in_a_sentence(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("yaml") / "r.yaml"
    lines = data.draw(st.lists(st.sampled_from(LINES), max_size=7))
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    text = end.join(lines) + data.draw(st.sampled_from(["", end, " ", "\t"]))
    file.write_bytes(text.encode(encoding, "replace"))
    content = in_a_sentence(lambda: read_yaml(file, "recipe", "name, base, stages"))
    assert content is None or isinstance(content, dict)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny_recipe(folder)
    return folder


@pytest.mark.train
@settings(FUZZ, max_examples=max(4, EXAMPLES // 20))
@given(data=st.data())
def test_what_is_planned_runs_or_is_refused_in_a_sentence(whole, samples, tmp_path_factory, data):
    """A stage that learns and one that asks on data made at random."""
    folder = tmp_path_factory.mktemp("run")
    try:
        shutil.copytree(whole / "base", folder / "base")
        file = recipe_on(folder)
        for name in data.draw(st.lists(st.sampled_from(["documents.jsonl", "questions.jsonl", "a.md"]), max_size=1)):
            (folder / "data" / name).write_bytes(content(data.draw, samples))
        trainer = {"max_steps": 1, "per_device_train_batch_size": 2}
        asked = {"models": ["base", "sft"], "max_new_tokens": 2}
        file = recipe_on(folder, sft={"from": "base", "documents": "data", "trainer": trainer}, scores=asked)
        result = in_a_sentence(lambda: run(file, runs=folder / "runs"))
        if result is not None:
            assert {row["model"] for row in result.evaluations[0]["rows"]} == {"base", "sft"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
