"""What is asked for, how answers are taken apart, and in which order the filters object."""

import json
import random
from itertools import pairwise

import pytest

from skillgraft.data.chunks import chunks, windows
from skillgraft.data.documents import Document
from skillgraft.data.synthesis.imported_renderings import read_given
from skillgraft.data.synthesis.prompt_templates import PROMPTS, Style, read_styles
from skillgraft.data.synthesis.requests import Rendering, lines, pairs, plan_requests, select, without_cut_end
from skillgraft.data.tasks import Question
from skillgraft.errors import DataError, MissingPathError, RecipeError
from skillgraft.settings.synthesis import SynthesisFilters
from tests.recipes import write_jsonl

DOCUMENT = Document("d", "The tower", "The tower of Orm is 40 metres high. It was built by Asta Lund in 1911.")


def test_windows_by_hand():
    assert windows(10, 4, 1) == [(0, 4), (3, 7), (6, 10)]
    assert windows(11, 4, 1) == [(0, 4), (3, 7), (6, 10), (9, 11)]
    assert windows(4, 4, 1) == [(0, 4)]
    assert windows(0, 4, 1) == [(0, 0)]


def test_windows_cover_everything_and_share_what_they_should():
    drawn = random.Random(1)
    for _ in range(500):
        tokens, size = drawn.randint(1, 60), drawn.randint(1, 20)
        overlap = drawn.randrange(size)
        found = windows(tokens, size, overlap)
        assert found[0][0] == 0
        assert found[-1][1] == tokens
        assert all(end - start <= size for start, end in found)
        assert all(a[1] - b[0] == overlap for a, b in pairwise(found))


def test_chunks_of_several_sizes():
    text = "aa bb cc dd ee"
    offsets = [(0, 2), (2, 5), (5, 8), (8, 11), (11, 14)]
    assert chunks(text, offsets, [5], 1) == [text]
    assert chunks(text, offsets, [3, 9, 10], 1) == ["aa bb cc", "cc dd ee", text]


def test_shipped_prompts_are_whole():
    names = sorted(file.stem for file in PROMPTS.glob("*.yaml"))
    styles = {style.name: style for style in read_styles(names)}
    assert len(styles["questions"].kinds) == 6
    assert [name for name, style in styles.items() if style.makes_questions] == ["questions"]
    for style in styles.values():
        for kind in style.kinds or [""]:
            asked = style.ask("The tower", "It is {kind} and {title} high.", kind)
            assert "It is {kind} and {title} high." in asked
            assert "The tower" in asked
            assert style.kinds.get(kind, "") in asked
        assert "its subject" in style.ask("", "x")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("version: 1\nmakes: text\nprompt: nothing\n", DataError, "must hold {text}"),
        ("version: one\nmakes: text\nprompt: '{text}'\n", DataError, "expected version"),
        ("version: 1\nmakes: questions\nprompt: '{text} {kind}'\n", DataError, "'kinds' maps names"),
        ("version: 1\nmakes: text\nprompt: '{text}'\nkind: x\n", DataError, "unknown key 'kind'"),
        ("- 1\n", RecipeError, "holds a list"),
    ],
)
def test_broken_prompt_files(tmp_path, text, error, message):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(error, match=message):
        read_styles(["own"], tmp_path)


def test_requests():
    text = Style("plain", 1, "About {title}: {text}", {})
    asking = Style("asking", 2, "{kind} {text}", {"who": "Ask who.", "when": "Ask when."})
    made = plan_requests([DOCUMENT], lambda document: ["one", "two"], [text, asking], 2, 0)
    assert [request.id for request in made[:6]] == [
        "d#plain-0-0",
        "d#plain-0-1",
        "d#asking-who-0-0",
        "d#asking-who-0-1",
        "d#asking-when-0-0",
        "d#asking-when-0-1",
    ]
    assert len(made) == 12
    assert [request.prompt for request in made[5:8]] == [
        "Ask when. one",
        "About The tower: two",
        "About The tower: two",
    ]
    assert len({request.seed for request in made}) == 12
    assert all(0 <= request.seed < 2**31 for request in made)
    fewer = plan_requests([DOCUMENT], lambda document: ["one"], [asking], 1, 0)
    assert {request.id: request.seed for request in fewer}.items() <= {r.id: r.seed for r in made}.items()
    newer = Style("plain", 2, text.prompt, {})
    assert plan_requests([DOCUMENT], lambda document: ["one"], [newer], 1, 0)[0].seed != made[0].seed


def test_pairs_in_their_usual_dresses():
    text = """Here are the questions:
Q: Who built it?
A: Asta Lund

1. **Question:** How high is it?
   **Answer:** 40 metres
Q2: A question without an answer?
Q: In which year was it built?
A2: *1911*
"""
    assert pairs(text) == [
        ("Who built it?", "Asta Lund"),
        ("How high is it?", "40 metres"),
        ("In which year was it built?", "1911"),
    ]
    assert pairs("nothing of the kind") == []
    assert pairs("Q: " * 20_000) == []


def test_lines_and_cut_ends():
    assert lines("1. One.\n\n- Two - three\n• Four\n1911 was cold.") == [
        "One.",
        "Two - three",
        "Four",
        "1911 was cold.",
    ]
    assert without_cut_end("It is 3.5 metres high. It was bui") == "It is 3.5 metres high."
    assert without_cut_end('He said "no." And the') == 'He said "no."'
    assert without_cut_end("塔は高い。それは") == "塔は高い。"
    assert without_cut_end("no end in sight") == ""


def chosen(*texts, limits=None, held_out=(), **settings):
    renderings = [
        text if isinstance(text, Rendering) else Rendering(f"r{i}", DOCUMENT, DOCUMENT.text, "s", text)
        for i, text in enumerate(texts)
    ]
    settings = {"makes_questions": {"q": True}, "keep_original": False, **settings}
    return select([DOCUMENT], renderings, limits or SynthesisFilters(), held_out=held_out, **settings)


GOOD = "Asta Lund is the builder of a tower in Orm, which she finished in 1911."


def test_each_filter_says_its_reason():
    cut = Rendering("cut", DOCUMENT, DOCUMENT.text, "s", "This never comes to", complete=False)
    echo = "Write the facts that follow from this passage, one full sentence per line, please."
    repeated = Rendering("echo", DOCUMENT, DOCUMENT.text, "s", echo, instruction=echo)
    result = chosen(
        GOOD,
        "",
        "I'm sorry, I cannot help with that request at all.",
        "*** === --- ??? !!! a b c d e",
        "Too short.",
        "the tower is high, the tower is high, the tower is high, the tower is high, the tower is high",
        cut,
        repeated,
        "Who built the tower of Orm, one asks: it was Asta Lund of course.",
        GOOD.upper(),
        DOCUMENT.text,
        held_out=[Question("d", "Who built the tower of Orm?", ("Asta Lund",))],
    )
    assert [record["text"] for record in result.documents] == [GOOD]
    assert [record["why"] for record in result.dropped] == [
        "empty",
        "refusal",
        "nonsense",
        "too short",
        "repeats itself",
        "cut off in its first sentence",
        "repeats the prompt",
        "gives a held-out question away",
        "near duplicate",
        "near duplicate",
    ]
    assert result.dropped[-1]["detail"] == "1.00 of d"
    assert result.dropped[-2]["detail"] == "1.00 of r0"
    assert result.counts()["kept"] == {"s": 1}


def test_too_long():
    assert chosen(GOOD, GOOD + " " + GOOD, limits=SynthesisFilters(max_words=20)).counts()["dropped"] == {"too long": 1}


def test_questions_need_an_answer_that_stands_in_their_chunk():
    made = "Q: Who built the tower of Orm?\nA: Asta Lund\nQ: What is its colour?\nA: bright green\nQ: How high"
    result = chosen(Rendering("r", DOCUMENT, DOCUMENT.text, "q", made, kind="fact", complete=False))
    assert result.documents == []
    assert result.questions == [
        {
            "id": "r-0",
            "document": "d",
            "question": "Who built the tower of Orm?",
            "answers": ["Asta Lund"],
            "source": "d",
            "style": "q",
            "kind": "fact",
        }
    ]
    [dropped] = result.dropped
    assert (dropped["why"], dropped["detail"]) == ("answer not supported", "0.00")


def test_documents_stay_first_and_are_never_dropped():
    result = chosen(GOOD, DOCUMENT.rendered(), keep_original=True)
    assert [(r["id"], r["style"]) for r in result.documents] == [("d", "original"), ("r0", "s")]


def test_other_languages_pass():
    german = "Der Turm von Orm wurde 1911 von Asta Lund gebaut und ist vierzig Meter hoch."
    japanese = "オルムの塔は高さ四十メートルで、アスタ・ルンドが千九百十一年に建てた。"
    assert len(chosen(german, japanese).documents) == 2


def test_given_renderings_that_are_wrong(tmp_path):
    with pytest.raises(MissingPathError, match=r"given: .*none.jsonl does not exist"):
        read_given(tmp_path / "none.jsonl", [DOCUMENT])
    jsonl = tmp_path / "g.jsonl"
    write_jsonl(jsonl, [{"document": "d"}])
    with pytest.raises(DataError, match="line 1: expected the strings 'document' and 'text'"):
        read_given(jsonl, [DOCUMENT])
    write_jsonl(jsonl, [{"document": "z", "text": "x"}])
    with pytest.raises(DataError, match="no rendering of any of the 1 documents"):
        read_given(jsonl, [DOCUMENT])
    seal = tmp_path / "g.json"
    for content, message in [
        ("{", "is not JSON"),
        ("{}", "holds a dict"),
        ("[1]", "record 0: expected a mapping"),
        ([{"completions": "__import__(1)"}], "no list of texts"),
        ([{"completions": "[" * 5000}], "no list of texts"),
        ([{"completions": [1]}], "expected a list of texts"),
        ([{"completions": ["\ud83d"]}], "surrogate"),
    ]:
        records = content if isinstance(content, str) else [{"context": DOCUMENT.text, **each} for each in content]
        seal.write_text(records if isinstance(records, str) else json.dumps(records))
        with pytest.raises(DataError, match=message):
            read_given(seal, [DOCUMENT])
