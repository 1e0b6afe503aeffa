"""Renderings of documents: what is asked of a model, and what of its answers is kept. Loads no torch.

What is asked follows SEAL (arXiv 2506.10943, section 3.1), PaST's two stages on LooGLE (2601.11258: texts over chunks
of several sizes, then questions on small chunks) and WRAP (2401.16380); the prompts are our own words (`styles`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from skillgraft.data.documents import Document
from skillgraft.data.ngram_overlap import Leakage
from skillgraft.data.synthesis import filters
from skillgraft.data.synthesis.prompt_templates import Style
from skillgraft.data.tasks import Question
from skillgraft.errors import DataError
from skillgraft.settings.synthesis import SynthesisFilters

GIVEN = "given"
"""The style of renderings that were read, not written."""

_LABEL = r"[ \t]*(?:[-*#>]+[ \t]*)?(?:\d+[.)][ \t]*)?[*_]*"
_PAIR = re.compile(
    rf"^{_LABEL}(?:Q|Question)[ \t]*\d*[ \t]*[:.][*_]*[ \t]*(?P<question>.+?)\s*\n"
    rf"{_LABEL}(?:A|Answer)[ \t]*\d*[ \t]*[:.][*_]*[ \t]*(?P<answer>[^\n]+)",
    re.MULTILINE | re.IGNORECASE,
)
_MARKER = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,3}[.)])\s+")
_SENTENCE_END = re.compile(r"[.!?。！？।]['\")\]»”’]*(?=\s|$)|[。！？।]|\n")


@dataclass(frozen=True)
class Request:
    """One rendering to be written; `seed` follows from the recipe's seed and from what is asked alone."""

    id: str
    document: Document
    chunk: str
    style: Style
    kind: str
    seed: int

    @property
    def prompt(self) -> str:
        """What the model is asked."""
        return self.style.ask(self.document.title, self.chunk, self.kind)

    @property
    def instruction(self) -> str:
        """The prompt without the chunk: what a rendering should not repeat."""
        return self.style.ask(self.document.title, "", self.kind)


@dataclass(frozen=True)
class Rendering:
    """One rendering as it came: of which chunk of which document, and whether it ended by itself."""

    id: str
    document: Document
    chunk: str
    style: str
    text: str
    kind: str = ""
    instruction: str = ""
    complete: bool = True


@dataclass
class Result:
    """What is kept, as records of documents.jsonl and questions.jsonl, what is not, and the leakage report."""

    documents: list[dict[str, Any]] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    leakage: list[dict[str, Any]] = field(default_factory=list)

    def counts(self) -> dict[str, Any]:
        """Return how many were kept by style and dropped by reason."""
        synthetic = [record for record in self.documents if record["style"] != "original"] + self.questions
        return {
            "kept": dict(sorted(Counter(record["style"] for record in synthetic).items())),
            "dropped": dict(sorted(Counter(record["why"] for record in self.dropped).items())),
        }


def plan_requests(
    documents: Sequence[Document],
    cut: Callable[[Document], list[str]],
    styles: Sequence[Style],
    samples: int,
    seed: int,
) -> list[Request]:
    """Return what is to be written, by document, chunk, style, kind of question and sample; `cut` gives the chunks."""
    requests = []
    for document in documents:
        for number, chunk in enumerate(cut(document)):
            for style in styles:
                for kind in style.kinds or ("",):
                    for sample in range(samples):
                        name = f"{style.name}-{kind}" if kind else style.name
                        what = [seed, document.id, style.name, style.version, kind, number, sample]
                        requests.append(
                            Request(
                                f"{document.id}#{name}-{number}-{sample}",
                                document,
                                chunk,
                                style,
                                kind,
                                int.from_bytes(blake3(json.dumps(what).encode()).digest()[:4], "big") >> 1,
                            )
                        )
    return requests


def pairs(text: str) -> list[tuple[str, str]]:
    """Return the (question, answer) pairs of lines `Q: …` and `A: …`, also numbered, bold or spelt out."""
    return [
        (" ".join(match["question"].strip(" *_").split()), match["answer"].strip(" *_"))
        for match in _PAIR.finditer(text)
    ]


def lines(text: str) -> list[str]:
    """Return the lines that are not empty, without the marks of a list."""
    return [clean for line in text.splitlines() if (clean := _MARKER.sub("", line).strip())]


def without_cut_end(text: str) -> str:
    """Return a text that the token limit cut off, up to its last whole sentence or line; empty if there is none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].rstrip() if ends else ""


def select(
    documents: Sequence[Document],
    renderings: Sequence[Rendering],
    limits: SynthesisFilters,
    *,
    makes_questions: Mapping[str, bool],
    split_lines: bool = False,
    keep_original: bool = True,
    held_out: Sequence[Question] = (),
    refuse_leaks: bool = False,
) -> Result:
    """Return which renderings are kept: each goes through the filters in their order, the first that objects counts.

    A text that is close to its own document or an earlier rendering is a near duplicate. Documents themselves are
    never dropped; what they give away of the held-out questions is reported.

    Raises:
        DataError: nothing is left, or `refuse_leaks` and something gives a held-out question away.
    """
    result, leaks, duplicates = Result(), Leakage(held_out, limits.leakage), filters.Duplicates()
    for document in documents:
        duplicates.add(document.id, document.text)
        if keep_original:
            leaks.gives_away(document.id, document.rendered())
            result.documents.append(_record(document.id, document.title, document.text, document.id, "original"))
    removed = []
    for item in _items(renderings, makes_questions, split_lines):
        why = item.wrong(limits)
        if not why and (given_away := leaks.gives_away(item.id, item.whole)):
            removed.append(item.id)
            why = ("gives a held-out question away", held_out[given_away[0]].question)
        if not why:
            other, similarity = duplicates.closest(item.whole)
            if similarity >= limits.near_duplicate:
                why = ("near duplicate", f"{similarity:.2f} of {other}")
        if why:
            result.dropped.append({**item.record(), "why": why[0], "detail": why[1]})
            continue
        duplicates.add(item.id, item.whole)
        (result.questions if item.answer is not None else result.documents).append(item.record())
    result.leakage = leaks.report(removed)
    leaked = [record for record in result.leakage if record["leaked_by"]]
    if refuse_leaks and leaked:
        raise DataError(
            f"{len(leaked)} held-out questions are given away, the first, '{leaked[0]['question']}', by "
            f"{leaked[0]['leaked_by'][0]}; leakage: remove drops such renderings; a document that does must go itself"
        )
    if renderings and not any(record["style"] != "original" for record in [*result.documents, *result.questions]):
        reasons = ", ".join(f"{why} {count}" for why, count in result.counts()["dropped"].items())
        raise DataError(
            f"none of {len(renderings)} renderings is left ({reasons}); let another model write, or loosen filters"
        )
    return result


@dataclass(frozen=True)
class _Item:
    """A text, or a question with its answer, out of a rendering."""

    id: str
    rendering: Rendering
    text: str
    answer: str | None = None
    broken: str = ""

    @property
    def whole(self) -> str:
        return f"{self.text} {self.answer}" if self.answer is not None else self.text

    def record(self) -> dict[str, Any]:
        source, style = self.rendering.document, self.rendering.style
        if self.answer is None:
            return _record(self.id, source.title, self.text, source.id, style)
        return {
            **{"id": self.id, "document": source.id, "question": self.text, "answers": [self.answer]},
            **{"source": source.id, "style": style, "kind": self.rendering.kind},
        }

    def wrong(self, limits: SynthesisFilters) -> tuple[str, str] | None:
        """Return the reason why the item itself is to be dropped with the value that decided, or None."""
        count = len(filters.words(self.text))
        if self.broken or not self.text.strip():
            return self.broken or "empty", ""
        if filters.is_refusal(self.rendering.text):
            return "refusal", ""
        if filters.is_nonsense(self.whole):
            return "nonsense", ""
        if self.answer is None and not limits.min_words <= count <= limits.max_words:
            return ("too short" if count < limits.min_words else "too long"), f"{count} words"
        if (repeated := filters.repetition(self.whole)) > limits.repetition:
            return "repeats itself", f"{repeated:.2f}"
        echo = filters.share(self.text, self.rendering.instruction)
        if echo > 0.5:
            return "repeats the prompt", f"{echo:.2f}"
        if self.answer is not None and (
            (supported := filters.support(self.answer, self.rendering.chunk)) < limits.support
        ):
            return "answer not supported", f"{supported:.2f}"
        return None


def _items(renderings: Sequence[Rendering], makes_questions: Mapping[str, bool], split_lines: bool) -> Iterator[_Item]:
    for each in renderings:
        if makes_questions.get(each.style, False):
            whole = each.text if each.complete else each.text.rpartition("\n")[0]
            questions = pairs(whole)
            for number, (question, answer) in enumerate(questions):
                yield _Item(f"{each.id}-{number}", each, question, answer)
            if not questions:
                yield _Item(each.id, each, each.text, broken="no question with an answer")
            continue
        text = each.text.strip() if each.complete else without_cut_end(each.text)
        if each.text.strip() and not text:
            yield _Item(each.id, each, each.text, broken="cut off in its first sentence")
            continue
        if not split_lines:
            yield _Item(each.id, each, text)
            continue
        for number, line in enumerate(lines(text) or [""]):
            yield _Item(f"{each.id}-{number}", each, line)


def _record(name: str, title: str, text: str, source: str, style: str) -> dict[str, Any]:
    return {"id": name, "title": title, "text": text, "source": source, "style": style}
