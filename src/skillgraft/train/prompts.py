"""Closed-book questions as prompts: one definition for RL, SFT on questions, and evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import BatchEncoding, PreTrainedTokenizerBase

from skillgraft.domains.knowledge import INSTRUCTION

Prompt = str | list[dict[str, str]]
"""What TRL takes as a prompt: plain text, or a chat."""


def as_prompt(tokenizer: PreTrainedTokenizerBase, question: str, instruction: str = INSTRUCTION) -> Prompt:
    """Return the closed-book prompt for `question`: instruction as system message, question as user message.

    A chat template that refuses a system role (Gemma's) gets the instruction before the question instead; a tokenizer
    without a template gets plain `Question: … / Answer:` lines. An empty instruction is left out.
    """
    if tokenizer.chat_template is None:
        return f"{instruction}\nQuestion: {question}\nAnswer:".lstrip()
    asked = {"role": "user", "content": question}
    if not instruction:
        return [asked]
    chat = [{"role": "system", "content": instruction}, asked]
    try:
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return [{"role": "user", "content": f"{instruction} {question}"}]
    return chat


def encode(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], instruction: str = INSTRUCTION
) -> BatchEncoding:
    """Return left-padded `input_ids` and `attention_mask`, each (questions, longest prompt), ready to generate from."""
    prompts = [as_prompt(tokenizer, question, instruction) for question in questions]
    chats = [
        tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True)
        for p in prompts
        if isinstance(p, list)
    ]
    return tokenizer(
        chats or prompts, add_special_tokens=not chats, padding=True, padding_side="left", return_tensors="pt"
    )
