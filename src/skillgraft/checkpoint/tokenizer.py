"""Tokenizer identity: one hash of a checkpoint's token map, so that vectors never cross token maps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from blake3 import blake3

from skillgraft.checkpoint.layout import require_directory
from skillgraft.checkpoint.safe_read import read_json_object, shown
from skillgraft.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
MAX_TOKEN_ID = 2**32 - 1  # the tokenizers library keeps 32 bits
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
    ids, merges = read_token_map(directory)
    digest = blake3(json.dumps(sorted(ids)).encode())
    digest.update(json.dumps(merges).encode())
    return "blake3:" + digest.hexdigest()


def read_token_map(directory: str | os.PathLike[str]) -> tuple[set[tuple[str, int]], list[list[str]]]:
    """Return the (token, id) pairs of vocabulary and added tokens, and the merges; raises as `tokenizer_identity`."""
    directory = require_directory(directory)
    path = directory / TOKENIZER_FILE
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{directory}: a checkpoint without tokenizer: expected {TOKENIZER_FILE}; copy it from the base model or "
            "write it with AutoTokenizer.from_pretrained(base).save_pretrained(directory)"
        )
    content = read_json_object(path)
    try:
        model = content["model"]
        ids = _vocabulary(model["vocab"])
        ids |= {_pair(token["content"], token["id"]) for token in content.get("added_tokens") or []}
        merges = [_merge(merge) for merge in model.get("merges") or []]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path}: no vocabulary could be read ({type(error).__name__}: {error}); expected the file that the "
            "tokenizers library writes: save the tokenizer again"
        ) from error
    return ids, merges


def rows_needed(directory: str | os.PathLike[str]) -> int:
    """Return how many rows of an embedding the tokenizer's ids need; raises as `tokenizer_identity`."""
    return 1 + max((number for _, number in read_token_map(directory)[0]), default=-1)


def _vocabulary(vocab: Any) -> set[tuple[str, int]]:
    if isinstance(vocab, dict):
        return {_pair(token, number) for token, number in vocab.items()}
    if not isinstance(vocab, list):
        raise TypeError(f"the vocabulary is a JSON {type(vocab).__name__}")
    # Unigram models list [token, score] pairs; the position is the id.
    if not all(isinstance(entry, list) for entry in vocab):
        raise TypeError("the vocabulary is not a list of [token, score] pairs")
    return {_pair(entry[0], number) for number, entry in enumerate(vocab)}


def _pair(token: Any, number: Any) -> tuple[str, int]:
    if type(token) is not str or type(number) is not int or not 0 <= number <= MAX_TOKEN_ID:
        raise TypeError(f"the id of token {shown(token)} is {shown(number)}")
    return token, number


def _merge(merge: Any) -> list[str]:
    # Older files join the two parts with a space, newer ones keep a pair: the same merge.
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    if type(left) is not str or type(right) is not str:
        raise TypeError(f"{shown(merge)} is not a merge of two tokens")
    return [left, right]
