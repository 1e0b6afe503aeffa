"""Reasoning blocks: what a model thinks before its answer, cut off before the answer is scored. Loads no torch."""

from __future__ import annotations

BLOCKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""How a block begins and ends: Qwen3, DeepSeek-R1 and many more; Magistral; Seed-OSS; gpt-oss."""


def opens_reasoning(prompt: str) -> bool:
    """Return whether a prompt ends within a reasoning block, as templates that force a model to think let it."""
    return any(prompt.rstrip().endswith(begin) for begin, _ in BLOCKS)


def has_reasoning(text: str) -> bool:
    """Return whether a mark of a reasoning block stands in `text`."""
    return any(mark in text for block in BLOCKS for mark in block)


def without_reasoning(text: str, opened: bool = False) -> str:
    """Return what stands in `text` outside of reasoning blocks.

    Of a block that is not closed nothing is left: the answer was never reached. `opened`: the prompt began a block.
    """
    closed = False
    for begin, end in BLOCKS:
        before, found, after = text.rpartition(end)
        if found:
            text, closed = (before.partition(begin)[0] if begin in before else "") + after, True
        if begin in text:
            return text.partition(begin)[0]
    return "" if opened and not closed else text
