"""The reward `judge`: a model is asked whether an answer says the same as the gold one. Loads no torch.

Asked at temperature 0; every reply is kept on disk under the hash of model and prompt, so that the same answer is not
judged twice and a run that goes on after a kill gets the same rewards. An answer stands in the prompt as a JSON string,
so that a line of it cannot pass for a line of ours.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint
from skillgraft.data.synthesis.endpoint import Endpoint
from skillgraft.data.synthesis.endpoint_key import read_key
from skillgraft.data.synthesis.generation import GenerationCache, Request, write_by_endpoint, write_locally
from skillgraft.errors import TrainingError
from skillgraft.settings.synthesis import EndpointSettings
from skillgraft.support.digest import digest
from skillgraft.support.progress import silent

PROMPT = """\
You mark a quiz. Say whether the given answer means the same as a correct one; more words around it do not matter.
Question: {question}
Correct: {answers}
Given: {given}
Does the given answer mean the same as a correct one? Reply with one word, yes or no."""
AGAIN = "\nReply with the single word yes or the single word no, and nothing else."

MOST_TOKENS = 8
"""Longest reply, in tokens."""
LONGEST_ANSWER = 2000
"""Characters of an answer that a judge is shown."""
BATCH = 32
"""Answers that a local judge reads at once."""
ENOUGH = 20
"""Answers after which it is clear whether a judge judges."""
MOST_WITHOUT_VERDICT = 0.25
"""Share of answers that a judge may leave without a verdict."""

_VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)

Triple = tuple[str, Sequence[str], str]
"""A question, its gold answers, and what is to be judged."""


@dataclass(frozen=True)
class _Asked:
    id: str
    prompt: str
    seed: int = 0


def verdict_of(reply: str) -> float | None:
    """Return 1.0 for a reply that begins with yes, 0.0 for no, None for neither."""
    match = _VERDICT.match(reply)
    return None if match is None else float(match[1].lower() == "yes")


def prompt_for(question: str, answers: Sequence[str], given: str) -> str:
    """Return what the judge is asked first."""
    quoted = " or ".join(json.dumps(answer, ensure_ascii=False) for answer in answers)
    return PROMPT.format(
        question=json.dumps(question, ensure_ascii=False),
        answers=quoted,
        given=json.dumps(given[:LONGEST_ANSWER], ensure_ascii=False),
    )


class Judge:
    """Asks `ask(requests, kept)`, which has what is missing in `kept` written; `name` is the model's identity."""

    def __init__(
        self, name: str, ask: Callable[[Sequence[Request], GenerationCache], None], kept: GenerationCache
    ) -> None:
        self.name, self.ask, self.kept = name, ask, kept
        self.judged: dict[str, float | None] = {}

    def verdicts(self, triples: Sequence[Triple]) -> list[float | None]:
        """Return 1.0 for yes and 0.0 for no to each; None where the judge said neither, asked twice. Empty is no.

        Raises:
            TrainingError: of at least `ENOUGH` answers, more than `MOST_WITHOUT_VERDICT` have no verdict.
            EndpointError: the endpoint fails for good; the replies so far are kept.
        """
        prompts = [prompt_for(*triple) if triple[2].strip() else None for triple in triples]
        waiting = list(dict.fromkeys(p for p in prompts if p is not None and p not in self.judged))
        for more in ("", AGAIN):
            requests = {prompt: _Asked(self._key(prompt + more), prompt + more) for prompt in waiting}
            self.ask(list(requests.values()), self.kept)
            self.judged |= {p: verdict_of(self.kept.by_id[one.id]["text"]) for p, one in requests.items()}
            waiting = [prompt for prompt in waiting if self.judged[prompt] is None]
        self._check()
        return [0.0 if prompt is None else self.judged[prompt] for prompt in prompts]

    def _key(self, prompt: str) -> str:
        return digest([self.name, prompt])

    def _check(self) -> None:
        without = [prompt for prompt, verdict in self.judged.items() if verdict is None]
        if len(self.judged) < ENOUGH or len(without) <= MOST_WITHOUT_VERDICT * len(self.judged):
            return
        last = self._key(without[-1] + AGAIN)
        reply = " ".join(self.kept.by_id[last]["text"].split())[:80]
        self.kept.drop(self._key(prompt + more) for prompt in without for more in ("", AGAIN))
        raise TrainingError(
            f"judge {self.name}: it said neither yes nor no to {len(without)} of {len(self.judged)} answers, last "
            f"{reply!r}; expected a model that follows the instruction: name another one as judge"
        )


@contextlib.contextmanager
def judge_of(stage: Any, inputs: Mapping[str, Path], work: Path) -> Iterator[Judge | None]:
    """Yield the judge that an rl stage names, None where it names none; its replies are kept in `work`."""
    cache = GenerationCache(work, "judged.jsonl")
    if stage.judge_endpoint is not None:
        yield endpoint_judge(stage.judge_endpoint, cache)
    elif stage.judge is not None:
        yield local_judge(inputs[stage.judge], cache)
    else:
        yield None


def endpoint_judge(settings: EndpointSettings, kept: GenerationCache) -> Judge:
    """Return the model behind an endpoint as a judge."""
    key = read_key(settings.key_variable)

    def ask(requests: Sequence[Request], kept: GenerationCache) -> None:
        with Endpoint.from_settings(settings, key) as endpoint:
            write_by_endpoint(
                requests,
                endpoint,
                settings.at_once,
                kept,
                silent,
                temperature=0.0,
                top_p=1.0,
                max_tokens=MOST_TOKENS,
                what="verdicts",
            )

    return Judge(f"{settings.model} at {settings.url}", ask, kept)


def local_judge(directory: Path, kept: GenerationCache) -> Judge:
    """Return the checkpoint in `directory` as a judge."""
    from skillgraft.data.synthesis.local_writer import LocalWriter
    from skillgraft.models.loading import load_tokenizer

    writer = LocalWriter(directory, load_tokenizer(directory), temperature=0.0, top_p=1.0, max_new_tokens=MOST_TOKENS)

    def ask(requests: Sequence[Request], kept: GenerationCache) -> None:
        missing = [request for request in requests if request.id not in kept.by_id]
        if missing:
            writer.check_length([request.prompt for request in missing])
            write_locally(missing, writer, BATCH, kept, silent)

    return Judge(f"{directory.name} {fingerprint_checkpoint(directory)}", ask, kept)
