"""Settings of synthetic documents: endpoints, filters, how renderings are written, the judge. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from skillgraft.settings.base import DataPath, Ignored, PromptSettings, Settings


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must begin with http:// or https:// and name a host, such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must hold no user, password, query or fragment; a key is named by key_variable")
    return url


class EndpointSettings(PromptSettings):
    """A model behind an OpenAI-compatible chat endpoint; its key is read from the environment and written nowhere.

    `chat_template_kwargs` are sent with each request, as vLLM and SGLang take them.
    """

    url: Annotated[str, AfterValidator(_endpoint)] = Field(description="up to /v1, such as http://localhost:8000/v1")
    model: str = Field(pattern=r"\S", description="the model's name there")
    key_variable: Annotated[str | None, Ignored()] = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="environment variable that holds the key"
    )
    timeout_seconds: Annotated[float, Ignored()] = Field(
        120.0, gt=0, le=3600, description="longest wait for one rendering"
    )
    retries: Annotated[int, Ignored()] = Field(
        5, ge=0, le=20, description="more tries after a failure that may pass, with growing waits"
    )
    at_once: Annotated[int, Ignored()] = Field(4, ge=1, le=100, description="requests under way at the same time")


class SynthesisFilters(Settings):
    """What makes a rendering be dropped; each with its reason in dropped.jsonl."""

    min_words: int = Field(5, ge=1, description="a text of fewer words is dropped")
    max_words: int = Field(4000, ge=1, description="a text of more words is dropped")
    repetition: float = Field(0.5, ge=0, le=1, description="largest share of 4-word sequences that occurred before")
    near_duplicate: float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity of 3-word sequences to a document or an earlier rendering"
    )
    support: float = Field(0.6, ge=0, le=1, description="least share of an answer's words that stand in its chunk")
    leakage: float = Field(0.6, gt=0, le=1, description="share of a held-out question's 4-word sequences that leaks it")


class SynthesisSettings(PromptSettings):
    """How renderings are written, or read, and filtered."""

    endpoint: EndpointSettings | None = Field(None, description="let a model behind an endpoint write instead")
    given: Annotated[Path | None, DataPath()] = Field(
        None, description="read renderings instead: a table with document, text; or SEAL's JSON"
    )
    given_samples: int | None = Field(None, ge=1, description="of given, limit to each document's first N")
    styles: list[str] = Field([], description="names of prompt files: implications, rewrite, summary, questions, …")
    prompts: Annotated[Path | None, DataPath()] = Field(None, description="folder of prompt files of your own")
    samples: int = Field(1, ge=1, description="renderings of each chunk in each style")
    chunk_tokens: list[Annotated[int, Field(ge=16)]] = Field(
        [2048], min_length=1, description="sizes of chunks that longer documents are cut into, each size for itself"
    )
    overlap_tokens: int = Field(256, ge=0, description="tokens that a chunk shares with the one before")
    temperature: float = Field(0.7, ge=0, le=10, description="0: the likeliest word each time")
    top_p: float = Field(0.95, gt=0, le=1, description="probability mass that words are drawn from")
    max_new_tokens: int = Field(512, ge=1, description="longest rendering, in tokens")
    batch_size: int = Field(8, ge=1, description="renderings that a local model writes at once")
    split_lines: bool = Field(False, description="each line of a text becomes a document of its own, as in SEAL")
    keep_original: bool = Field(True, description="the documents themselves come first in the result")
    filters: SynthesisFilters = Field(SynthesisFilters.model_validate({}), description="limits of the filters")
    held_out: Annotated[list[Path], DataPath()] = Field(
        [], description="tables of evaluation questions that no rendering may give away"
    )
    leakage: Literal["remove", "refuse"] = Field("remove", description="what happens where a rendering does")


JUDGE = "judge"
"""The reward that asks a model whether an answer is right."""

TeacherSees = Literal["document", "answer", "both"]
SEES = "what is put before the teacher: the question's document, its gold answer as an example, or both"

LONGEST_ANSWER = 64
"""Default of `trainer.max_completion_length` in self-distillation, in tokens."""
