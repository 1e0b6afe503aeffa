"""Closed-book questions as prompts: one definition for RL, SFT on questions, and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

INSTRUCTION = "Answer with a short phrase."
"""Said before every question, in RL and in evaluation alike, so that habit is not all there is to learn."""

Prompt = str | list[dict[str, str]]
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
    to answer from (open book) and comes before the question. A chat template that refuses a system role (Gemma's) gets
    the instruction before the first user message instead; a tokenizer without a template gets plain
    `Question: … / Answer:` lines. An empty instruction is left out.
    """
    if tokenizer.chat_template is None:
        worked = "".join(f"Question: {example}\nAnswer: {answer}\n\n" for example, answer in examples)
        text = f"{context}\n\n" if context else ""
        return f"{instruction}\n{worked}{text}Question: {question}\nAnswer:".lstrip()
    turns = []
    for example, answer in examples:
        turns += [{"role": "user", "content": example}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": f"{context}\n\nQuestion: {question}" if context else question})
    if not instruction:
        return turns
    chat = [{"role": "system", "content": instruction}, *turns]
    try:
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return [{"role": "user", "content": f"{instruction} {turns[0]['content']}"}, *turns[1:]]
    return chat


def encode(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], instruction: str = INSTRUCTION
) -> BatchEncoding:
    """Return left-padded `input_ids` and `attention_mask`, each (questions, longest prompt), ready to generate from."""
    return encode_prompts(tokenizer, [as_prompt(tokenizer, question, instruction) for question in questions])


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], padding: bool = True
) -> BatchEncoding:
    """Return prompts of `as_prompt` as `encode` does; without padding as lists."""
    chats = [
        tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True)
        for p in prompts
        if isinstance(p, list)
    ]
    return tokenizer(
        chats or prompts,
        add_special_tokens=not chats,
        padding=padding,
        padding_side="left",
        return_tensors="pt" if padding else None,
    )
