"""Compatibility of checkpoints: names, shapes, ties, architecture and token maps, from headers and configs alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from skillgraft.adapters.peft_file import PeftAdapter
from skillgraft.checkpoint.fingerprint import fingerprint_file
from skillgraft.checkpoint.header import TensorInfo
from skillgraft.checkpoint.layout import Layout
from skillgraft.checkpoint.tensor_io import same_bytes
from skillgraft.checkpoint.tokenizer import TOKENIZER_FILE, rows_needed, tokenizer_identity
from skillgraft.errors import CompatibilityError
from skillgraft.skills.architecture import LM_HEAD, architecture_differences, architecture_facts
from skillgraft.skills.compatibility import adapter_tensor_findings, raise_refusals


def without_tied_copy(layout: Layout, other: Layout) -> Layout:
    """Return a layout without an output head that `other` does not store and that is a copy of the tied embedding.

    The head must equal the embedding bit for bit: then it is one matrix, stored twice.
    """
    head = layout.tensors.get(LM_HEAD)
    if head is None or LM_HEAD in other.tensors or not architecture_facts(layout).tie_word_embeddings:
        return layout
    for name, info in layout.tensors.items():
        if name.endswith("embed_tokens.weight") and same_bytes(info, head):
            return replace(layout, tensors={key: each for key, each in layout.tensors.items() if key != LM_HEAD})
    return layout


def check_models(target: Layout, other: Layout, allow: Collection[str] | None = ()) -> list[str]:
    """Return remarks on how `other` fits `target`; raise where it does not and `allow` does not say otherwise.

    Raises `CompatibilityError` for other head counts, RoPE or ties in the config (`architecture`), tensors that only
    one of them has (`missing`), another token map (`tokenizer`), another shape (a vocabulary padded to another number
    of rows fits where both have a row for each token), or integers in place of floats. The names in brackets are what
    `allow` turns into a remark; with None the command has no such option.
    """
    remarks = []
    differences = architecture_differences(architecture_facts(other), architecture_facts(target))
    if differences:
        remarks.append(
            _refuse_unless(
                "architecture",
                allow,
                f"{other.path} and {target.path} differ: {'; '.join(differences)}",
                "expected models of one architecture: weights of the same shape mean other things",
            )
        )
    for one, two in ((target, other), (other, target)):
        missing = [name for name in one.tensors if name not in two.tensors]
        if missing:
            remarks.append(_refuse_unless("missing", allow, *_missing(one, two, missing)))
    if other.path != target.path and (identities := _identities(other.path, target.path, allow)):
        remarks.append(
            _refuse_unless(
                "tokenizer",
                allow,
                f"{other.path} and {target.path} have different tokenizers: token maps {' and '.join(identities)}",
                "expected the same tokens with the same ids: rows of the embedding would be mixed by number",
            )
        )
    for name, info in other.tensors.items():
        if name in target.tensors:
            _check_tensor(target, other, target.tensors[name], info)
    return remarks


def check_pair(rl: Layout, sft: Layout) -> None:
    """Raise `CompatibilityError` unless θ_RL − θ_SFT makes sense: as `check_models`, and no shape may differ."""
    check_models(sft, rl, None)
    for name, info in rl.tensors.items():
        if info.shape != sft.tensors[name].shape:
            raise _shape_error(sft, rl, sft.tensors[name], info)


def check_adapter_fits(adapter: PeftAdapter, target: Layout) -> None:
    """Raise `CompatibilityError` unless `target` stores every tensor that the adapter changes, in its shape."""
    raise_refusals(adapter_tensor_findings(target, adapter))


def check_tokenizers(one: Path, other: Path) -> None:
    """Raise `CompatibilityError` when the two directories' token maps differ."""
    if identities := _identities(one, other, ()):
        raise CompatibilityError(
            f"{one} and {other} have different tokenizers: token maps {' and '.join(identities)}; expected the "
            "same tokens and ids"
        )


def rows_of_vocabulary(target: Layout, name: str) -> str:
    """Return the remark on a tensor whose padded vocabulary rows some operand does not have."""
    return (
        f"vocabulary padded to other numbers of rows; the tokenizer has {rows_needed(target.path)} tokens, and the "
        f"target keeps its own {target.tensors[name].shape[0]} rows"
    )


def _identities(one: Path, other: Path, allow: Collection[str] | None) -> tuple[str, str] | None:
    if (
        allow is not None
        and "tokenizer" in allow
        and not all((path / TOKENIZER_FILE).is_file() for path in (one, other))
    ):
        return None
    files = [path / TOKENIZER_FILE for path in (one, other)]
    if all(file.is_file() for file in files) and fingerprint_file(files[0]) == fingerprint_file(files[1]):
        return None
    identities = tokenizer_identity(one), tokenizer_identity(other)
    return identities if identities[0] != identities[1] else None


def _refuse_unless(name: str, allow: Collection[str] | None, what: str, why: str) -> str:
    if allow is None:
        raise CompatibilityError(f"{what}; {why}")
    if name in allow:
        return f"{what}: allowed explicitly"
    raise CompatibilityError(f"{what}; {why} (--allow {name} goes on all the same)")


def _missing(one: Layout, two: Layout, missing: list[str]) -> tuple[str, str]:
    tie = "; tied in one file and stored in the other: save both with save_pretrained" if LM_HEAD in missing else ""
    what = f"{two.path} has no tensor {missing[0]!r}, which {one.path} has ({len(missing)} such)"
    return what, f"expected the same tensors in both{tie}"


def _check_tensor(target: Layout, other: Layout, wanted: TensorInfo, got: TensorInfo) -> None:
    if got.shape != wanted.shape and not _is_padding(target, other, wanted, got):
        raise _shape_error(target, other, wanted, got)
    if got.is_float != wanted.is_float:
        raise CompatibilityError(
            f"tensor {got.name!r} is {got.dtype} in {other.path} and {wanted.dtype} in {target.path}; expected "
            "float dtypes in both"
        )


def _shape_error(target: Layout, other: Layout, wanted: TensorInfo, got: TensorInfo) -> CompatibilityError:
    return CompatibilityError(
        f"tensor {got.name!r} has shape {list(got.shape)} in {other.path} and {list(wanted.shape)} in "
        f"{target.path}; expected the same: take models of one size and vocabulary"
    )


def _is_padding(target: Layout, other: Layout, wanted: TensorInfo, got: TensorInfo) -> bool:
    """Return whether the tensors are vocabularies of one tokenizer that were padded to different numbers of rows."""
    if len(got.shape) != len(wanted.shape) or got.shape[1:] != wanted.shape[1:]:
        return False
    sizes = [(architecture_facts(layout).vocab_size, info) for layout, info in ((target, wanted), (other, got))]
    if any(size != info.shape[0] for size, info in sizes):
        return False
    return min(got.shape[0], wanted.shape[0]) >= max(rows_needed(target.path), rows_needed(other.path))
