"""The single checks of `verify_checkpoint`: each yields findings about one side of a checkpoint."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from skillgraft.checkpoint.header import Header, TensorInfo
from skillgraft.checkpoint.layout import ADAPTER_CONFIG_FILE, CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, WEIGHTS_SUFFIX
from skillgraft.checkpoint.provenance import PROVENANCE_FILE, read_provenance
from skillgraft.checkpoint.safe_read import read_json_object, shown
from skillgraft.checkpoint.tensor_io import TORCH_NAMES, same_bytes
from skillgraft.checkpoint.tokenizer import TOKENIZER_FILE, read_token_map
from skillgraft.errors import SkillgraftError

METADATA_INPUTS = "skillgraft_inputs"
SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
GENERATIVE = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_FINGERPRINT = re.compile(r"blake3:[0-9a-f]{64}")


class Finding(NamedTuple):
    """One finding: `subject` is the file or tensor; `message` states what was got, what was expected and the remedy."""

    severity: Literal["error", "warning", "note"]
    subject: str
    message: str


def leftover_findings(directory: Path, files: list[Path], index: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Yield files beside the weights that are not part of them: stale shards, an unused index, adapters, pickles."""
    used = {file.name for file in files}
    names = sorted(os.listdir(directory))
    if files and index is None and INDEX_FILE in names:
        yield Finding(
            "warning",
            INDEX_FILE,
            f"{directory / INDEX_FILE} is beside {WEIGHTS_FILE}, which takes precedence; expected one of them: delete "
            "the index, left by an earlier save in shards",
        )
    for name in names:
        if name.endswith(WEIGHTS_SUFFIX) and name not in used and files:
            yield _unused_file(directory, name, names)
        elif name.startswith("pytorch_model") or name.endswith(".gguf"):
            yield Finding("note", name, f"{directory / name} is not read and not checked: only safetensors are")


def _unused_file(directory: Path, name: str, names: list[str]) -> Finding:
    if _SHARD.fullmatch(name):
        return Finding(
            "warning",
            name,
            f"{directory / name} is a shard that no index names; expected only the shards in use: delete it, left by "
            "an earlier save, before a tool that reads every shard mixes the two",
        )
    if name.startswith("adapter_") and ADAPTER_CONFIG_FILE in names:
        return Finding(
            "warning",
            name,
            f"{directory / name} is an adapter beside a full checkpoint; expected one of them: Transformers loads the "
            "adapter on top, so move it into a folder of its own",
        )
    return Finding("note", name, f"{directory / name} is not part of the checkpoint; loaders ignore it")


def size_findings(index: Mapping[str, Any] | None, tensors: Mapping[str, TensorInfo]) -> Iterator[Finding]:
    """Yield a note when the index states another total size than its tensors have."""
    metadata = (index or {}).get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    actual = sum(info.end - info.begin for info in tensors.values())
    if stated is not None and stated != actual:
        yield Finding(
            "note",
            INDEX_FILE,
            f"{INDEX_FILE} states a total_size of {shown(stated)}, the tensors have {actual} bytes; loaders read "
            "on, but the index may come from another save",
        )


def metadata_findings(headers: list[Header]) -> Iterator[Finding]:
    """Check the metadata in the files' headers: a foreign format, unreadable or differing inputs."""
    inputs: dict[str, str] = {}
    for header in headers:
        name = header.tensors[0].file.name if header.tensors else WEIGHTS_FILE
        if header.metadata and header.metadata.get("format") != "pt":
            yield Finding(
                "warning",
                name,
                f"{name}: the header's format is {shown(header.metadata.get('format'))}, expected 'pt'; some versions "
                "of Transformers refuse it: save the checkpoint again with save_pretrained",
            )
        if METADATA_INPUTS not in header.metadata:
            continue
        inputs[name] = header.metadata[METADATA_INPUTS]
        try:
            content = json.loads(inputs[name])
        except (ValueError, RecursionError) as error:
            content = str(error)
        wrong = _bad_fingerprints(content) if isinstance(content, dict) else [content]
        if wrong:
            yield Finding(
                "warning",
                name,
                f"{name}: {METADATA_INPUTS} in the header holds {shown(wrong[0])}, expected blake3:<64 hex digits> by "
                "input; what made these weights can't be traced",
            )
    if len(set(inputs.values())) > 1:
        yield Finding(
            "warning",
            INDEX_FILE,
            f"{', '.join(inputs)} record different {METADATA_INPUTS}; expected shards of one run: make the checkpoint "
            "again",
        )


def provenance_findings(directory: Path, headers: list[Header], fingerprint: str | None) -> Iterator[Finding]:
    """Check `skillgraft.json`: malformed fingerprints, or weights that it does not describe."""
    provenance = read_provenance(directory)
    if provenance is None:
        return
    path = directory / PROVENANCE_FILE
    base = provenance["base"].get("fingerprint")
    inputs = provenance.get("inputs", {})
    wrong = _bad_fingerprints({"inputs": inputs, **({"base": base} if base is not None else {})})
    if wrong:
        yield Finding(
            "warning",
            PROVENANCE_FILE,
            f"{path} holds {shown(wrong[0])}, expected blake3:<64 hex digits>; what made this checkpoint can't be "
            "traced: restore the file or delete it",
        )
    if provenance.get("kind") == "base" and None not in (base, fingerprint) and base != fingerprint:
        yield Finding(
            "warning",
            PROVENANCE_FILE,
            f"{path} says that the weights are {shown(base)}, they are {fingerprint}; they changed since: take them "
            "from their source again, or delete the file",
        )
    recorded = {header.metadata[METADATA_INPUTS] for header in headers if METADATA_INPUTS in header.metadata}
    if inputs and recorded and json.dumps(inputs, sort_keys=True) not in recorded:
        yield Finding(
            "warning",
            PROVENANCE_FILE,
            f"{path} names other inputs than the headers of the weights; expected the same: one of them was copied "
            "from another checkpoint",
        )


def _bad_fingerprints(content: Any) -> list[Any]:
    """Return the leaves of nested maps and lists that are not fingerprints."""
    pending, wrong = [content], []
    while pending:
        value = pending.pop()
        if isinstance(value, dict | list):
            pending.extend(value.values() if isinstance(value, dict) else value)
        elif not isinstance(value, str) or not _FINGERPRINT.fullmatch(value):
            wrong.append(value)
    return wrong


def dtype_findings(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Iterator[Finding]:
    """Yield where the config's dtype is not that of the data, which a loader with dtype="auto" converts to it."""
    sizes: Counter[str] = Counter()
    for info in tensors.values():
        if info.is_float:
            sizes[TORCH_NAMES[info.dtype]] += info.end - info.begin
    if not sizes:
        return
    config = _text_config(config)
    stated = config.get("dtype") or config.get("torch_dtype")
    main, most = sizes.most_common(1)[0]
    if stated is not None and stated != main:
        yield Finding(
            "warning",
            CONFIG_FILE,
            f"{CONFIG_FILE} says dtype {shown(stated)}, {100 * most // sizes.total()}% of the float data are {main}; "
            f'expected the same: loaders with dtype="auto" convert, and may round; set dtype to "{main}"',
        )
    if len(sizes) > 1:
        shares = ", ".join(f"{name} {size} bytes" for name, size in sizes.most_common())
        yield Finding("note", "dtypes", f"the float tensors have several dtypes: {shares}")


def tie_findings(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Iterator[Finding]:
    """Yield where the stored output matrix contradicts `tie_word_embeddings`; compares bytes when it is stored."""
    tied, embedding = _text_config(config).get("tie_word_embeddings"), _find(tensors, EMBEDDINGS)
    head = _find(tensors, HEADS)
    if tied is True and head is not None and embedding is not None:
        if same_bytes(head, embedding):
            text = f"{head.name!r} is stored although it is tied to {embedding.name!r}: both are the same bytes"
            yield Finding("note", head.name, text)
            return
        yield Finding(
            "warning",
            head.name,
            f"{head.name!r} is stored and differs from {embedding.name!r} while {CONFIG_FILE} ties them; loaders drop "
            "one of the two: set tie_word_embeddings to false if both are meant, else delete the head",
        )
    architectures = config.get("architectures")
    generative = isinstance(architectures, list) and any(
        isinstance(name, str) and name.endswith(GENERATIVE) for name in architectures
    )
    if tied is False and head is None and embedding is not None and generative:
        twin = any(info.shape == embedding.shape and info is not embedding for info in tensors.values())
        if not twin:
            yield Finding(
                "error",
                "lm_head.weight",
                f"{CONFIG_FILE} says tie_word_embeddings false and no output matrix is stored (lm_head.weight, of "
                f"shape {list(embedding.shape)}); loaders would fill it with random values: set it to true, or save "
                "the model again",
            )


def tokenizer_findings(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> Iterator[Finding]:
    """Check the tokenizer's files, and that the embedding has a row for every id."""
    for name in SIDE_FILES:
        try:
            if os.path.lexists(directory / name):
                read_json_object(directory / name)
        except SkillgraftError as error:
            yield Finding("error", name, str(error))
    vocabulary, embedding = _text_config(config).get("vocab_size"), _find(tensors, EMBEDDINGS)
    if type(vocabulary) is int and embedding is not None and embedding.shape[0] != vocabulary:
        yield Finding(
            "error",
            embedding.name,
            f"{embedding.name!r} has {embedding.shape[0]} rows, {CONFIG_FILE} says vocab_size {vocabulary}; loaders "
            "refuse it: take config and weights from the same save",
        )
    try:
        ids, _ = read_token_map(directory)
    except SkillgraftError as error:
        yield Finding("error", TOKENIZER_FILE, str(error))
        return
    rows = embedding.shape[0] if embedding is not None else vocabulary
    largest = max((number for _, number in ids), default=-1)
    if type(rows) is not int:
        return
    if largest >= rows:
        yield Finding(
            "error",
            TOKENIZER_FILE,
            f"{directory / TOKENIZER_FILE}: the largest id is {largest}, the embedding has {rows} rows, expected at "
            f"least {largest + 1}; take the model's own tokenizer, or call resize_token_embeddings({largest + 1})",
        )
    elif largest + 1 < rows:
        text = f"the embedding has {rows} rows for {largest + 1} ids: the last {rows - largest - 1} are padding"
        yield Finding("note", TOKENIZER_FILE, text)


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with a multimodal one's `text_config` where the top level says nothing."""
    inner = config.get("text_config")
    return {**(inner if isinstance(inner, dict) else {}), **config}


def _find(tensors: Mapping[str, TensorInfo], endings: tuple[str, ...]) -> TensorInfo | None:
    """Return the float matrix with the shortest name that is one of `endings` or ends in a dot and one of them."""
    names = [name for name in tensors if any(name == end or name.endswith(f".{end}") for end in endings)]
    matrices = [tensors[name] for name in sorted(names, key=len) if len(tensors[name].shape) == 2]
    return next((info for info in matrices if info.is_float), None)
