"""Preflight check of a checkpoint that is to be trained or asked: what loading, embedding or chat template rule out."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skillgraft.checkpoint.layout import CONFIG_FILE, read_layout
from skillgraft.checkpoint.tokenizer import tokenizer_files
from skillgraft.checkpoint.verify_checks import tie_findings, tokenizer_findings
from skillgraft.checkpoint.weight_names import contradictions
from skillgraft.errors import CheckpointError
from skillgraft.models.chat_template import chat_style, current_arguments, template_arguments
from skillgraft.models.loading import check_loadable, load_tokenizer, model_without_weights, try_tokenizer

_THINKING = "enable_thinking"


def check_checkpoint(directory: Path) -> None:
    """Raise `CheckpointError` for a checkpoint that cannot be trained or asked; no weights are read.

    Refused is what `models.loading.check_loadable` refuses, an error that `verify` would report of tokenizer, embedding
    or output matrix, and a chat template that cannot be used.
    """
    files = [directory / CONFIG_FILE, *tokenizer_files(directory)]
    states = tuple((str(file), file.stat().st_mtime_ns) for file in files if file.is_file())
    _check(directory, states, json.dumps(dict(current_arguments()), sort_keys=True, default=str))


@functools.lru_cache(maxsize=64)
def _check(directory: Path, states: tuple[tuple[str, int], ...], template: str) -> None:
    check_loadable(directory)
    layout = read_layout(directory)
    findings = [
        *tokenizer_findings(directory, layout.config, layout.tensors),
        *tie_findings(layout.config, layout.tensors),
    ]
    for finding in findings:
        if finding.severity == "error":
            raise CheckpointError(finding.message)
    wrong = contradictions(
        model_without_weights(directory), {name: info.shape for name, info in layout.tensors.items()}
    )
    if wrong:
        more = f" ({len(wrong)} such)" if len(wrong) > 1 else ""
        raise CheckpointError(f"{directory}: {wrong[0]}{more}; take weights and {CONFIG_FILE} from one save")
    tokenizer = try_tokenizer(directory)
    if tokenizer.chat_template is not None:
        chat_style(tokenizer)


def remarks(directory: Path, new_tokens: int) -> Iterator[str]:
    """Yield a remark where the template lets the model think first, which answers of `new_tokens` may not outlast."""
    tokenizer = load_tokenizer(directory)
    template: Any = tokenizer.chat_template
    template = template.get("default", "") if isinstance(template, Mapping) else template or ""
    if _THINKING in template and _THINKING not in template_arguments(tokenizer) and new_tokens < 512:
        yield (
            f"the model may think before it answers, and answers of up to {new_tokens} tokens can end within that; "
            f"set chat_template_kwargs: {{{_THINKING}: false}}, or allow more tokens"
        )
