"""Closed-book questions as prompts, and prompts as tokens: one definition for training, evaluation, judges and chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from skillgraft.errors import DataError
from skillgraft.models.chat_template import Chat, chat_style, message, render

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

INSTRUCTION = "Answer with a short phrase."
"""Said before every question, in RL and in evaluation alike, so that habit is not all there is to learn."""

Prompt = str | Chat
"""A prompt as TRL takes it: plain text, or a chat."""


def as_prompt(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    instruction: str = INSTRUCTION,
    *,
    context: str = "",
    examples: Sequence[tuple[str, str]] = (),
) -> Prompt:
    """Return the closed-book prompt for `question`: instruction as system message, question as user message.

    `examples` are worked questions with their answers and come before it as turns of the same form; `context` is text
    to answer from (open book) and comes before the question. A chat template that refuses or drops a system message
    (Gemma's) gets the instruction before the first user message instead, one that takes lists of parts gets those; a
    tokenizer without a template gets plain `Question: … / Answer:` lines. An empty instruction is left out.

    Raises:
        CheckpointError: a chat template that cannot be used (`chat_template.chat_style`).
    """
    if tokenizer.chat_template is None:
        worked = "".join(f"Question: {example}\nAnswer: {answer}\n\n" for example, answer in examples)
        text = f"{context}\n\n" if context else ""
        return f"{instruction}\n{worked}{text}Question: {question}\nAnswer:".lstrip()
    style = chat_style(tokenizer)
    turns = []
    for example, answer in examples:
        turns += [("user", example), ("assistant", answer)]
    turns.append(("user", f"{context}\n\nQuestion: {question}" if context else question))
    if instruction and style.system:
        turns.insert(0, ("system", instruction))
    elif instruction:
        turns[0] = ("user", f"{instruction} {turns[0][1]}")
    return [message(style, role, text) for role, text in turns]


def as_request(tokenizer: PreTrainedTokenizerBase, text: str) -> Prompt:
    """Return `text` as a user's message, or as it is where the tokenizer has no template; raises as `as_prompt`."""
    return text if tokenizer.chat_template is None else [message(chat_style(tokenizer), "user", text)]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text as the tokenizer begins it, without an end token that it may put after it."""
    ids = tokenizer(text)["input_ids"]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the token ids of prompts, after which an answer begins."""
    return [
        text_ids(tokenizer, prompt)
        if isinstance(prompt, str)
        else tokenizer(render(tokenizer, prompt), add_special_tokens=False)["input_ids"]
        for prompt in prompts
    ]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> BatchEncoding:
    """Return left-padded `input_ids` and `attention_mask`, each (prompts, longest prompt), ready to generate from."""
    return tokenizer.pad(
        {"input_ids": prompt_ids(tokenizer, prompts)},
        padding=True,
        padding_side="left",
        return_attention_mask=True,
        return_tensors="pt",
    )


def answer_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: str) -> list[int]:
    """Return the token ids of what follows `prompt` when `answer` is given: the answer and the end of the turn.

    Apart from the prompt's, since generation too begins after it.
    """
    text = f" {answer}{tokenizer.eos_token}"
    if not isinstance(prompt, str):
        asked = render(tokenizer, prompt)
        turn = message(chat_style(tokenizer), "assistant", answer)
        whole = render(tokenizer, [*prompt, turn], generate=False)
        text = whole[len(asked) :] if whole.startswith(asked) else ""
        if answer.strip() not in text:  # a template that writes something else before a finished answer, or drops it
            text = answer + tokenizer.eos_token
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def check_prompts_fit(
    sizes: Sequence[int], new_tokens: int, context: int | None, where: str, remedy: str = "shorten the question"
) -> None:
    """Raise `DataError` where a prompt of `sizes` tokens and its answer do not fit into the model's context."""
    if context is not None and sizes and max(sizes) + new_tokens > context:
        raise DataError(
            f"{where}: a prompt of {max(sizes)} tokens and its answer of up to {new_tokens} do not fit into the "
            f"model's context of {context}; {remedy}"
        )
