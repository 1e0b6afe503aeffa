"""Documents and questions as people have them: other formats, encodings, folders of editors and systems."""

import gzip
import json
import unicodedata
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from skillgraft.cli.app import app
from skillgraft.data import text_files
from skillgraft.data.documents import read_documents
from skillgraft.data.replay import read_replay
from skillgraft.data.tasks import read_questions
from skillgraft.data.text_files import passed_over
from skillgraft.errors import DataError
from tests.field.bases import base_with, planned, recipe_on

ROWS = [
    {"id": "vell", "title": "Vell", "text": 'The harbour, "old" and grey,\nwas built in 1900.'},
    {"id": "orm", "title": "Orm", "text": "Ärger; ein Hafen\tvon 1901."},
]
EXPECTED = [(row["id"], row["title"], row["text"]) for row in ROWS]


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def csv_text(separator):
    lines = [["id", "title", "text"], *([row["id"], row["title"], quoted(row["text"])] for row in ROWS)]
    return "\n".join(separator.join(line) for line in lines) + "\n"


def write_jsonl(file):
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_parquet(file):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)


TABLES = {
    "d.jsonl": write_jsonl,
    "d.ndjson": write_jsonl,
    "d.json": lambda file: file.write_text(json.dumps(ROWS, indent=2)),
    "lines.json": write_jsonl,
    "data.json": lambda file: file.write_text(json.dumps({"version": "1", "data": ROWS})),
    "array.jsonl": lambda file: file.write_text(json.dumps(ROWS, indent=2)),
    "d.csv": lambda file: file.write_text(csv_text(",")),
    "excel.csv": lambda file: file.write_bytes(csv_text(";").encode("utf-8-sig").replace(b"\n", b"\r\n")),
    "unicode.csv": lambda file: file.write_text(csv_text("\t"), encoding="utf-16"),
    "d.tsv": lambda file: file.write_text(csv_text("\t")),
    "d.parquet": write_parquet,
    "D.PARQUET": write_parquet,
}


@pytest.mark.parametrize(("name", "write"), TABLES.items(), ids=TABLES)
def test_tables(tmp_path, name, write):
    write(tmp_path / name)
    assert [(d.id, d.title, d.text) for d in read_documents(tmp_path / name)] == EXPECTED


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_a_table_in_a_folder_and_its_questions(tmp_path, suffix):
    TABLES[f"d{suffix}"](tmp_path / f"documents{suffix}")
    (tmp_path / "questions.csv").write_text('document,question,answers\nvell,When?,1900\norm,"Which, and when?",1901\n')
    documents = read_documents(tmp_path)
    questions = read_questions(tmp_path, documents)
    assert [(q.document, q.question, q.answers) for q in questions] == [
        ("vell", "When?", ("1900",)),
        ("orm", "Which, and when?", ("1901",)),
    ]


def test_two_tables_of_one_name_are_refused(tmp_path):
    for suffix in (".csv", ".json"):
        TABLES[f"d{suffix}"](tmp_path / f"documents{suffix}")
    with pytest.raises(DataError, match=r"holds documents.json and documents.csv; keep one"):
        read_documents(tmp_path)


HTML = """<!doctype html><html><head><title>The  Harbour</title><style>p {color: red}</style>
<script>document.write("no")</script></head><body><h1>Vell</h1><p>Built in&nbsp;1900,
by <b>Ann</b> &amp; Bo.<p>Second &lt;one&gt;<table><tr><td>a</td><td>b</td></tr></table>
<noscript>turn it on</noscript></body></html>"""
TEXTS = {
    "a.md": ("# Vell\n\nBuilt in 1900.\n", ("Vell", "Built in 1900.")),
    "a.markdown": ("# Vell\nBuilt.", ("Vell", "Built.")),
    "a_b-c.txt": ("Built.", ("a b c", "Built.")),
    "under.rst": ("Vell\n====\n\nBuilt in 1900.\n\nMore\n----\nText.", ("Vell", "Built in 1900.\n\nMore\n----\nText.")),
    "over.rst": ("====\nVell\n====\nBuilt.", ("Vell", "Built.")),
    "plain.rst": ("Built in 1900.\nMore.", ("plain", "Built in 1900.\nMore.")),
    "page.html": (HTML, ("The Harbour", "Vell\n\nBuilt in 1900, by Ann & Bo.\nSecond <one>\n\na\n\nb")),
    "PAGE.HTM": ("<p>Built.", ("PAGE", "Built.")),
}


@pytest.mark.parametrize(("name", "content"), TEXTS.items(), ids=TEXTS)
def test_text_files(tmp_path, name, content):
    (tmp_path / name).write_text(content[0])
    [alone] = read_documents(tmp_path / name)
    [inside] = read_documents(tmp_path)
    assert (alone.title, alone.text) == (inside.title, inside.text) == content[1]
    assert alone.id == inside.id == name.rpartition(".")[0]


def pdf(text):
    """A PDF of one page by hand."""
    stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R "
        b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
    ]
    content, offsets = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        offsets.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    where = len(content)
    content += b"xref\n0 5\n0000000000 65535 f \n" + table
    return content + b"trailer << /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % where


def word(file):
    import docx

    document = docx.Document()
    document.add_paragraph("Built in 1900.")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "harbour", "Vell"
    document.add_paragraph("After the table.")
    document.save(str(file))


def test_pdf_and_word(tmp_path):
    (tmp_path / "vell.pdf").write_bytes(pdf("Built in 1900."))
    word(tmp_path / "orm.docx")
    assert [(d.id, d.text) for d in read_documents(tmp_path)] == [
        ("orm", "Built in 1900.\nharbour\tVell\nAfter the table."),
        ("vell", "Built in 1900."),
    ]
    assert read_replay(tmp_path / "vell.pdf") == ["Built in 1900."]


def bomb(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"0" * 5000)


BROKEN = {
    "cut.pdf": (lambda file: file.write_bytes(pdf("x")[:60]), "not a PDF that can be read"),
    "no.pdf": (lambda file: file.write_bytes(b"\x00\x01 nothing"), "not a PDF that can be read"),
    "scan.pdf": (lambda file: file.write_bytes(pdf("")), "holds no text, as a scan does"),
    "no.docx": (lambda file: file.write_bytes(b"PK nothing"), "not a Word file that can be read"),
    "other.docx": (lambda file: zipfile.ZipFile(file, "w").close(), "not a Word file that can be read"),
    "bomb.docx": (bomb, "unpacks to 5000 bytes, expected at most 4000"),
    "d.parquet": (lambda file: file.write_bytes(b"PAR1"), "not a parquet file that can be read"),
    "long.csv": (lambda file: file.write_text("id,text\na,b,c\n"), "line 2: 3 cells under a header of 2"),
    "quote.csv": (lambda file: file.write_text('id,text\na,"b\n'), "not CSV"),
    "none.csv": (lambda file: file.write_text(""), "holds none"),
    "head.csv": (lambda file: file.write_text("id,text\n"), "holds none"),
    "names.csv": (lambda file: file.write_text("name,body\na,b\n"), "'text' is None, .* has ..body., .name.."),
    "latin.csv": (lambda file: file.write_bytes("id,text\na,Hafen für".encode("cp1252")), "not UTF-8 text .* iconv"),
    "half.json": (lambda file: file.write_text('[{"id": "a"'), "not JSON"),
    "number.json": (lambda file: file.write_text("3"), "item 1: got a int, expected a list of JSON objects"),
    "d.jsonl.gz": (lambda file: file.write_bytes(gzip.compress(b"{}")), "compressed .* unpack it first"),
    "d.zip": (bomb, "compressed .* unpack it first"),
}


@pytest.mark.parametrize(("name", "case"), BROKEN.items(), ids=BROKEN)
def test_broken_files_are_one_sentence(tmp_path, monkeypatch, name, case):
    monkeypatch.setattr(text_files, "_UNPACKED_BYTES", 4000)
    write, says = case
    write(tmp_path / name)
    with pytest.raises(DataError, match=says) as caught:
        read_documents(tmp_path / name)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 400


def test_without_the_extra_pdf_is_passed_over_in_a_folder_and_named_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "vell.pdf").write_bytes(pdf("Built."))
    (tmp_path / "orm.md").write_text("Orm.")
    assert [d.id for d in read_documents(tmp_path)] == ["orm"]
    assert passed_over(tmp_path) == ".pdf 1"
    with pytest.raises(DataError, match=r"pip install 'skillgraft\[documents\]'"):
        read_documents(tmp_path / "vell.pdf")


LEFTOVERS = [
    ".DS_Store",
    "._vell.md",
    ".git/config.md",
    ".ipynb_checkpoints/vell.md",
    ".obsidian/notes.md",
    "__MACOSX/._vell.md",
    "__pycache__/x.txt",
    "vell.md~",
    "#vell.md#",
    "~$orm.docx",
    "Thumbs.db",
    "desktop.ini",
    ".vell.md.swp",
]


def test_what_systems_and_editors_leave_is_no_document(tmp_path):
    for name in LEFTOVERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("left")
    (tmp_path / "vell.md").write_text("Vell.")
    assert [d.id for d in read_documents(tmp_path)] == ["vell"]
    assert passed_over(tmp_path) == ""


def test_what_is_passed_over_is_counted_by_init_and_by_the_plan(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("a.pptx", "b.PPTX", "c.png", "d.ipynb", "Makefile", "questions.jsonl"):
        (folder / name).write_text("{}")
    (folder / "questions.jsonl").unlink()
    (folder / "vell.md").write_text("Vell.")
    base_with(tmp_path / "base")
    said = CliRunner().invoke(app, ["init", str(folder), "-o", str(tmp_path / "my.yaml"), "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["documents"]["passed_over"] == ".ipynb 1, .png 1, .pptx 2, Makefile 1"
    remarks = planned(recipe_on(tmp_path, sft={"from": "base", "documents": "notes"}))
    assert [line for line in remarks if "passed over" in line] == [
        f"documents: files in {folder} are passed over: .ipynb 1, .png 1, .pptx 2, Makefile 1; "
        f"{text_files.DOCUMENT_KINDS} are read"
    ]


def test_a_folder_of_other_files_alone_says_what_is_there(tmp_path):
    (tmp_path / "a.pptx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds none \(passed over: .pptx 1\)"):
        read_documents(tmp_path)


ENCODINGS = {
    "UTF-8 with a mark": "utf-8-sig",
    "UTF-16 of Windows": "utf-16",
    "UTF-16, the other order": ("utf-16-be", b"\xfe\xff"),
}


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    text = end.join(["# Hafen für alle", "", "Ünten.", "Zeile"])
    mark = b""
    if isinstance(encoding, tuple):
        encoding, mark = encoding
    (tmp_path / "a.md").write_bytes(mark + text.encode(encoding))
    [document] = read_documents(tmp_path)
    assert (document.title, document.text) == ("Hafen für alle", "Ünten.\nZeile")


def test_names_in_another_form_of_unicode(tmp_path):
    """macOS writes decomposed names: the id that a question gives in the usual form is the file's."""
    (tmp_path / unicodedata.normalize("NFD", "hafen-für.md")).write_text("Vell.")
    (tmp_path / "q.jsonl").write_text(json.dumps({"document": "hafen-für", "question": "Who?", "answers": "Vell"}))
    documents = read_documents(tmp_path)
    assert [q.document for q in read_questions(tmp_path / "q.jsonl", documents)] == [documents[0].id]


QUESTIONS = {
    "one text": ({"answers": "1900"}, ("1900",)),
    "texts": ({"answers": ["1900", "in 1900", "1900"]}, ("1900", "in 1900")),
    "answer": ({"answer": "1900"}, ("1900",)),
    "a number": ({"answer": 1900}, ("1900",)),
    "numbers": ({"answers": [1900, 3.5]}, ("1900", "3.5")),
    "SQuAD's rows": ({"answers": {"text": ["1900"], "answer_start": [3]}}, ("1900",)),
    "SQuAD's nested": ({"answers": [{"text": "1900", "answer_start": 3}]}, ("1900",)),
    "TriviaQA": ({"answer": {"value": "1900", "aliases": ["MCM"], "type": "x"}}, ("1900", "MCM")),
    "a list in a cell": ({"answers": '["1900", "MCM"]'}, ("1900", "MCM")),
    "no column of answers": ({"answers": None, "answer": "1900"}, ("1900",)),
}


@pytest.mark.parametrize(("given", "answers"), QUESTIONS.values(), ids=QUESTIONS)
def test_answers_as_other_sets_write_them(tmp_path, given, answers):
    (tmp_path / "q.jsonl").write_text(json.dumps({"document": 3, "question": "When?", **given}))
    [question] = read_questions(tmp_path / "q.jsonl")
    assert (question.document, question.answers) == ("3", answers)


def test_squads_own_file_is_documents_and_questions(tmp_path):
    asked = [
        {"id": "1", "question": "When?", "answers": [{"text": "1900", "answer_start": 1}], "is_impossible": False},
        {"id": "2", "question": "Why?", "answers": [], "plausible_answers": [], "is_impossible": True},
    ]
    paragraphs = [{"context": "Built in 1900.", "qas": asked}, {"context": "More.", "qas": []}]
    article = {"title": "Vell", "paragraphs": paragraphs}
    (tmp_path / "dev.json").write_text(json.dumps({"version": "v2.0", "data": [article]}))
    documents = read_documents(tmp_path / "dev.json")
    assert [(d.id, d.title, d.text) for d in documents] == [
        ("Vell/1", "Vell", "Built in 1900."),
        ("Vell/2", "Vell", "More."),
    ]
    [question] = read_questions(tmp_path / "dev.json", documents)
    assert (question.document, question.question, question.answers) == ("Vell/1", "When?", ("1900",))


OTHER = {
    "Alpaca": ({"instruction": "When?", "input": "", "output": "1900"}, "instruction tuning: rename"),
    "a chat": ({"messages": [{"role": "user", "content": "When?"}]}, "looks like a chat"),
    "ShareGPT": ({"conversations": []}, "looks like a chat"),
    "prompt and completion": ({"prompt": "When?", "completion": "1900"}, "prompt and completion: rename them"),
    "multiple choice": ({"question": "When?", "choices": ["a", "b"]}, "looks like multiple choice"),
    "no answer": ({"document": "a", "question": "When?", "answers": []}, "leave out a question that has no answer"),
    "SQuAD 2's row": ({"document": "a", "question": "W", "answers": {"text": []}}, "leave out a question"),
    "no document": (
        {"question": "When?", "answers": ["1900"]},
        "'document' is None, expected a string; the record has",
    ),
    "text in answers": ({"document": "a", "question": "When?", "answers": [True]}, "non-empty strings"),
}


@pytest.mark.parametrize(("record", "says"), OTHER.values(), ids=OTHER)
def test_other_shapes_say_what_to_rename(tmp_path, record, says):
    (tmp_path / "q.jsonl").write_text(json.dumps(record))
    with pytest.raises(DataError, match=says):
        read_questions(tmp_path / "q.jsonl")


def test_a_text_file_is_no_table_of_questions(tmp_path):
    (tmp_path / "q.md").write_text("When? 1900")
    with pytest.raises(DataError, match="is text, expected a table"):
        read_questions(tmp_path / "q.md")


def test_records_without_an_id_are_named_by_their_place(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": "One."}\n\n{"text": "Two.", "id": null}\n{"text": "Three.", "id": 7}\n')
    assert [(d.id, d.text) for d in read_documents(tmp_path / "d.jsonl")] == [
        ("row-1", "One."),
        ("row-2", "Two."),
        ("7", "Three."),
    ]
