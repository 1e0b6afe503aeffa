"""The card as a model hub reads it, and manifests that try to make more of it than text."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from skillgraft.arithmetic import extract, random_vector
from skillgraft.skills import load_skill
from skillgraft.skills.card import adapter_card_text, card_text, escaped
from tests.tiny import tiny_finetune

NAMES = ["model.norm.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"]
HOSTILE = [
    "x\n---\nlicense: mit\n---\n# Other title",
    "</td><script>alert(1)</script>",
    "![x](https://example.org/x.png) [click](javascript:alert(1))",
    "a | b | c\n| --- |",
    "`code` **bold** ~~gone~~ # head",
    "\u202egnp.exe\u2066 \u200f\u061c",
    "\x1b[31mred\x1b[0m\x00",
    "&lt;img src=x&gt; {{ template }} {% if %}",
    "x" * 5000,
]


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    rl = tiny_finetune(tiny, folder / "rl", names=NAMES)
    return extract(rl, tiny, folder / "skill", domain="almanac", license="Apache-2.0", language="en", seed=3)


def changed(manifest, base_id="some/base", **update):
    base = manifest.base.model_copy(update={"id": base_id, "fingerprint": "blake3:0b"})
    return manifest.model_copy(update={"base": base, **update})


def test_the_hub_reads_the_front_matter(made):
    scores = [{"model": "SFT", "λ": "–", "token F1": "0.045 (0.041 to 0.049)", "questions": 1472}]
    card = ModelCard(card_text(changed(made.manifest, scores=scores)))
    assert isinstance(card.data, ModelCardData)
    assert card.data.base_model == "some/base"
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "skillgraft"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.language == "en"
    assert card.data.tags == ["skillgraft", "skill-vector", "task-arithmetic"]
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "| SFT | – | 0.045 (0.041 to 0.049) | 1472 |" in card.text
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_what_is_not_known_is_left_out(made):
    data = ModelCard(card_text(made.manifest.model_copy(update={"license": None, "language": None}))).data.to_dict()
    assert sorted(data) == ["library_name", "pipeline_tag", "tags"]  # a base known by its weights has no id
    odd = ModelCard(card_text(changed(made.manifest, license="Our own license, 2026"))).data
    assert (odd.license, odd.license_name) == ("other", "Our own license, 2026")


def test_modules_are_summed_by_kind(made):
    embedding, norm, mlp = (made.norm(name) for name in (NAMES[1], NAMES[0], NAMES[2]))
    whole = embedding**2 + norm**2 + mlp**2
    text = card_text(made.manifest)
    assert f"| embedding | 1 | 10,240 | {embedding:.4g} | {embedding**2 / whole:.1%} |" in text
    assert f"| mlp | 1 | 2,048 | {mlp:.4g} | {mlp**2 / whole:.1%} |" in text
    assert f"| norm | 1 | 32 | {norm:.4g} | {norm**2 / whole:.1%} |" in text
    assert made.manifest.norm == pytest.approx(whole**0.5, rel=1e-12)


def test_a_control_says_that_it_is_one(made, tmp_path):
    text = card_text(random_vector(made, tmp_path / "random", seed=1).manifest)
    assert "# Control: almanac" in text
    assert "what reinforcement learning changed" not in text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(made, text):
    manifest = changed(
        made.manifest,
        base_id=text,
        domain=text,
        license=text,
        language=text,
        formula=text,
        recipe=text,
        created=text,
        skillgraft_version=text,
        tokenizer=text,
        sft=made.manifest.sft.model_copy(update={"fingerprint": text}),
        rl=made.manifest.rl.model_copy(update={"fingerprint": text}),
        scores=[{text: text, "model": {text: [text]}}],
    )
    report = {"exact": True, "scale": 1.0, "modules": 1, "rank": 1, "dropped": {}}
    for card in (card_text(manifest), adapter_card_text(manifest, report)):
        _, front, body = card.split("---\n", 2)
        data = yaml.safe_load(front)
        assert set(data) <= {"library_name", "pipeline_tag", "tags", "license", "license_name"}
        assert data["license"] == "other"
        assert "\n" not in data["license_name"]
        assert ModelCard(card).data.license == "other"
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", card)
        unescaped = re.sub(r"\\.", "", re.sub(r"```.*?```|`[^`\n]*`", "", body, flags=re.DOTALL))
        assert "<" not in unescaped.replace("arXiv", "")
        assert "](" not in unescaped
        headings = [line for line in body.splitlines() if line.startswith("#")]
        own = ["## Use", "## Modules", "## Scores", "## Limits"] if "## Use" in body else []
        assert headings[1:] == own
        for line in unescaped.splitlines():
            if line.startswith("|"):
                assert line.endswith("|")
                assert len(line) < 20_000
        tables = [line.count("|") for line in unescaped.splitlines() if line.startswith("|")]
        assert set(tables) <= {3, 4, 6}


@pytest.mark.parametrize("name", ["squad-recall", "squad-answer-format"])
def test_shipped_cards_are_what_their_manifests_say(name):
    skill = load_skill(Path(__file__).parents[2] / "skills" / name)
    text = (skill.path / "README.md").read_text()
    assert text == card_text(skill.manifest)
    assert ModelCard(text).data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_escaping():
    assert escaped("a|b_c <i> & `x`") == r"a\|b_c &lt;i&gt; &amp; \`x\`"
    assert escaped("__a__ _b_ c_") == r"\_\_a\_\_ \_b\_ c\_"
    assert escaped("two\nlines\t\u202ehere") == "two lines ⟨U+202E⟩here"
