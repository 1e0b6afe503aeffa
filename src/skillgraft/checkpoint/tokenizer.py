"""Which tokenizer a checkpoint has, as one hash, so that vectors never cross token maps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from blake3 import blake3

from skillgraft.checkpoint.json_file import read_json_object
from skillgraft.checkpoint.layout import require_directory
from skillgraft.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def tokenizer_files(directory: str | os.PathLike[str]) -> list[Path]:
    """Return the tokenizer and chat template files in `directory` that exist, in a fixed order."""
    directory = Path(directory)
    named = [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
    return named + sorted((directory / "additional_chat_templates").glob("*.jinja"))


def tokenizer_identity(directory: str | os.PathLike[str]) -> str:
    """Return `blake3:<hex>` over the sorted token-to-id map (vocabulary and added tokens) and, for BPE, the merges.

    Chat template, normaliser and special roles don't count: they don't change which row of the embedding a token
    uses. Raises `MissingPathError` when the directory is missing, `CheckpointError` when it has no `tokenizer.json`
    or one without a vocabulary.
    """
    directory = require_directory(directory)
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{directory}: a checkpoint without tokenizer: expected {TOKENIZER_FILE}; copy it from the base model or "
            "write it with AutoTokenizer.from_pretrained(base).save_pretrained(directory)"
        )
    content = read_json_object(path)
    try:
        model = content["model"]
        ids = _vocabulary(model["vocab"])
        ids |= {(token["content"], int(token["id"])) for token in content.get("added_tokens") or []}
        merges = [_merge(merge) for merge in model.get("merges") or []]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: no vocabulary could be read ({type(error).__name__}: {error}); expected the file that the "
            "tokenizers library writes: save the tokenizer again"
        ) from error
    digest = blake3(json.dumps(sorted(ids)).encode())
    digest.update(json.dumps(merges).encode())
    return "blake3:" + digest.hexdigest()


def _vocabulary(vocab: Any) -> set[tuple[str, int]]:
    if isinstance(vocab, dict):
        return {(str(token), int(number)) for token, number in vocab.items()}
    # Unigram models list [token, score] pairs; the position is the id.
    return {(str(pair[0]), number) for number, pair in enumerate(vocab)}


def _merge(merge: Any) -> list[str]:
    # Older files join the two parts with a space, newer ones keep a pair: the same merge.
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return [str(left), str(right)]
