"""GGUF files as checkpoints: dequantized once by Transformers, kept as float32 safetensors with their tokenizer.

Every architecture that Transformers converts is taken. Scores of quantized weights are not those of the model that
they were quantized from.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.checkpoint.provenance import base_of, write_provenance
from skillgraft.checkpoint.safe_read import read_json_object
from skillgraft.checkpoint.tokenizer import TOKENIZER_FILE
from skillgraft.checkpoint.writer import atomic_directory, storage_error
from skillgraft.errors import CheckpointError, SkillgraftError, did_you_mean
from skillgraft.support.atomic import atomic_write_json
from skillgraft.support.cache import cache_home


def gguf_file(path: Path) -> Path | None:
    """Return the GGUF file that a path names: itself, or the only one in a folder without safetensors.

    Raises `CheckpointError` for a folder with several, which are quantizations or parts of one model.
    """
    if path.is_file():
        return path if path.suffix.lower() == ".gguf" else None
    files = sorted(path.glob("*.gguf"))
    if not files or any(path.glob("*.safetensors")) or any(path.glob("*.safetensors.index.json")):
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{path} holds several GGUF files: {names}; name the file itself as base")
    return files[0]


def converted_gguf(file: Path, say: Callable[[str], None] = lambda message: None) -> Path:
    """Return the checkpoint that a GGUF file was converted to, converting it the first time.

    It lies in the cache folder under the file's fingerprint, and takes 4 bytes a weight.

    Raises:
        CheckpointError: no GGUF file, an architecture that Transformers does not convert, or no causal language model.
        StorageError: the cache's disk is full.
    """
    fingerprint = fingerprint_file(file)
    directory = cache_home() / "models" / f"gguf-{fingerprint.rpartition(':')[2][:24]}"
    if not directory.exists():
        check_architecture(file)
        say(f"converting {file.name} to safetensors (once)")
        with contextlib.suppress(FileExistsError), atomic_directory(directory) as out:  # another process was faster
            convert_gguf(file, out, base_id=None, made_by={"gguf": fingerprint})
    check_converted(directory)
    return directory


def check_converted(directory: Path) -> None:
    """Raise `CheckpointError` for a converted model whose weights are no longer those that were written."""
    written = base_of(directory)
    if written is None or written["fingerprint"] != fingerprint_checkpoint(directory):
        raise CheckpointError(
            f"the converted model {directory} is damaged: its weights are not those that were written; delete the "
            "directory, it is made again"
        )


def check_architecture(file: Path) -> None:
    """Raise `CheckpointError` for a file that is no GGUF or of an architecture that Transformers does not convert."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        import gguf

        field = gguf.GGUFReader(str(file)).get_field("general.architecture")
        name = str(bytes(field.parts[field.data[0]]), "utf-8") if field is not None else None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes the reader fail in any way
        raise CheckpointError(f"{file}: not a GGUF file that can be read ({_short(error)}); get it again") from error
    known = sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer", "t5", "umt5"})
    if name is None or name.replace("-", "_") not in {each.replace("-", "_") for each in known} | _SPELT:
        raise CheckpointError(
            f"{file}: architecture {name!r} is none that Transformers converts to a causal language model"
            f"{did_you_mean(str(name), known)}; expected one of {', '.join(known)}: use the safetensors checkpoint"
        )


_SPELT = {"qwen2moe", "qwen3moe"}
"""Names of GGUF's that Transformers spells otherwise."""


def convert_gguf(gguf: Path, out: Path, *, base_id: str | None, made_by: Mapping[str, Any]) -> None:
    """Write a GGUF model as a float32 checkpoint with tokenizer and provenance into the directory `out`."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = str(gguf.resolve().parent)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar that no setting turns off
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
            read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # the weights are dequantized; save_pretrained refuses a config that has it
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        fresh.load_state_dict(read.state_dict())
        fresh.tie_weights()
        fresh.generation_config = read.generation_config
        fresh.config._name_or_path = base_id or gguf.stem
        fresh.save_pretrained(str(out))
        tokenizer.save_pretrained(str(out))
        _drop_tokens_without_rows(out, fresh.get_input_embeddings().num_embeddings)
    except (MemoryError, SkillgraftError):
        raise
    except Exception as error:  # files from elsewhere make Transformers fail in any way
        if storage_error(error, out) is not None:
            raise
        raise CheckpointError(
            f"{gguf}: Transformers cannot convert it ({type(error).__name__}: {_short(error)}); use the safetensors "
            "checkpoint"
        ) from error
    write_provenance(
        out, kind="base", base={"id": base_id, "fingerprint": fingerprint_checkpoint(out)}, made_by=made_by, inputs={}
    )


def _drop_tokens_without_rows(out: Path, rows: int) -> None:
    """Take special tokens out of the saved tokenizer that its class adds by default and the model has no row for."""
    file, config_file = out / TOKENIZER_FILE, out / "tokenizer_config.json"
    tokenizer = read_json_object(file)
    spare = {each["content"] for each in tokenizer["added_tokens"] if each["id"] >= rows}
    if not spare:
        return
    tokenizer["added_tokens"] = [each for each in tokenizer["added_tokens"] if each["content"] not in spare]
    config = {key: value for key, value in read_json_object(config_file).items() if value not in list(spare)}
    atomic_write_json(file, tokenizer)
    atomic_write_json(config_file, config)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
