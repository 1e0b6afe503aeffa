"""Verification of one checkpoint directory: a list of all findings instead of the first error."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from skillgraft.checkpoint.fingerprint import fingerprint_files
from skillgraft.checkpoint.header import Header, TensorInfo, read_header
from skillgraft.checkpoint.layout import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    collect_tensors,
    read_config,
    require_directory,
    weight_files,
)
from skillgraft.checkpoint.provenance import PROVENANCE_FILE
from skillgraft.checkpoint.tensor_io import CHUNK_BYTES, count_not_finite
from skillgraft.checkpoint.verify_checks import (
    Finding,
    dtype_findings,
    leftover_findings,
    metadata_findings,
    provenance_findings,
    size_findings,
    tie_findings,
    tokenizer_findings,
)
from skillgraft.errors import SkillgraftError
from skillgraft.support.progress import Progress

Result = TypeVar("Result")


@dataclass(frozen=True)
class Verification:
    """Contents of a checkpoint and the findings on it; of damaged weights, only the readable part is counted.

    `dtypes` counts tensors by safetensors dtype; `data_bytes` and `parameters` (float elements) count stored tensors;
    `fingerprint` is None where the weights could not be read; `values_checked` is whether values were read to find NaN.
    """

    path: Path
    findings: tuple[Finding, ...]
    files: tuple[str, ...] = ()
    tensors: int = 0
    parameters: int = 0
    data_bytes: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)
    fingerprint: str | None = None
    values_checked: bool = False

    @property
    def ok(self) -> bool:
        """True without errors; warnings and notes don't count."""
        return all(finding.severity != "error" for finding in self.findings)

    @property
    def summary(self) -> str:
        """One line: the contents, and the number of findings by severity."""
        count = Counter(finding.severity for finding in self.findings)
        counts = ", ".join(f"{count[severity]} {severity}{'s' * (count[severity] > 1)}" for severity in sorted(count))
        dtypes = ", ".join(f"{number} {dtype}" for dtype, number in self.dtypes.items())
        return (
            f"{self.path}: {self.tensors} tensors ({dtypes or 'none readable'}) in {len(self.files)} "
            f"file{'s' * (len(self.files) != 1)}, {self.parameters:,} parameters, {self.data_bytes:,} bytes, "
            f"{self.fingerprint or 'no fingerprint'}; {counts or 'nothing to report'}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        own = {name: getattr(self, name) for name in ("tensors", "parameters", "data_bytes", "fingerprint")}
        return {
            "path": str(self.path),
            "ok": self.ok,
            "findings": [finding._asdict() for finding in self.findings],
            "files": list(self.files),
            "dtypes": dict(self.dtypes),
            "values_checked": self.values_checked,
            **own,
        }


def verify_checkpoint(
    directory: str | os.PathLike[str], values: bool = False, progress: Progress | None = None
) -> Verification:
    """Check the checkpoint in `directory` and return the findings, the most severe first.

    Looked at are the config, index, headers, leftovers of other saves, dtypes, ties, tokenizer, provenance and the
    fingerprint; with `values` every float tensor is read, a few MiB at a time, and NaN and infinity are counted.
    `progress` counts the bytes read of files and tensors. Torch is imported for `values` alone.

    Raises `MissingPathError` and `CheckpointError` only when `directory` cannot be listed.
    """
    directory = require_directory(directory)
    findings: list[Finding] = []
    config = _attempt(findings, CONFIG_FILE, read_config, directory)
    files, index = _attempt(findings, "weights", weight_files, directory) or ([], None)
    headers = [header for file in files if (header := _attempt(findings, file.name, read_header, file))]
    tensors = {info.name: info for header in headers for info in header.tensors}
    complete = bool(files) and len(headers) == len(files)
    if complete:
        subject = INDEX_FILE if index is not None else WEIGHTS_FILE
        complete = _attempt(findings, subject, collect_tensors, directory, headers, index) is not None

    read = _Bytes(files, tensors if values else {}, progress)
    fingerprint = _attempt(findings, "fingerprint", fingerprint_files, files, read.hashed) if complete else None
    findings += leftover_findings(directory, files, index)
    findings += metadata_findings(headers)
    findings += _attempt_all(PROVENANCE_FILE, provenance_findings(directory, headers, fingerprint))
    if complete:
        findings += size_findings(index, tensors)
    if complete and config is not None:
        findings += dtype_findings(config, tensors)
        findings += _attempt_all("lm_head.weight", tie_findings(config, tensors))
    findings += tokenizer_findings(directory, config or {}, tensors if complete else {})
    if values:
        findings += _value_findings(tensors, read)
    order = ("error", "warning", "note")
    return Verification(
        path=directory,
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.severity))),
        files=tuple(file.name for file in files),
        tensors=len(tensors),
        parameters=sum(info.elements for info in tensors.values() if info.is_float),
        data_bytes=_data_bytes(headers),
        dtypes=dict(Counter(info.dtype for info in tensors.values()).most_common()),
        fingerprint=fingerprint,
        values_checked=values,
    )


def _attempt(findings: list[Finding], subject: str, read: Callable[..., Result], *arguments: Any) -> Result | None:
    """Call `read`; a refusal becomes an error among `findings`, and the result None."""
    try:
        return read(*arguments)
    except SkillgraftError as error:
        findings.append(Finding("error", subject, str(error)))
        return None


def _attempt_all(subject: str, check: Iterator[Finding]) -> list[Finding]:
    """Return the findings of a check that may itself be refused midway; the refusal is its last finding."""
    findings: list[Finding] = []
    _attempt(findings, subject, findings.extend, check)
    return findings


class _Bytes:
    """Counts the bytes read of files (for the fingerprint) and tensors (for the values) and reports progress."""

    def __init__(self, files: list[Path], tensors: Mapping[str, TensorInfo], progress: Progress | None) -> None:
        self._sizes = {file: file.stat().st_size for file in files} if progress else {}
        self._total = sum(self._sizes.values()) + sum(i.end - i.begin for i in tensors.values() if i.is_float)
        self._done = 0
        self._progress = progress

    def hashed(self, file: Path) -> None:
        self._add(self._sizes.get(file, 0))

    def checked(self, info: TensorInfo) -> None:
        self._add(info.end - info.begin)

    def _add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _value_findings(tensors: Mapping[str, TensorInfo], read: _Bytes) -> list[Finding]:
    findings: list[Finding] = []
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for info in (info for info in tensors.values() if info.is_float):
        counts = _attempt(findings, info.name, count_not_finite, info, buffer)
        if counts is not None and any(counts):
            message = (
                f"{info.file}: tensor {info.name!r} holds {counts[0]} NaN and {counts[1]} infinite values among "
                f"{info.elements}; expected finite values: training diverged or the file is damaged; take an earlier "
                "checkpoint or download it again"
            )
            findings.append(Finding("error", info.name, message))
        read.checked(info)
    return findings


def _data_bytes(headers: list[Header]) -> int:
    return sum(info.end - info.begin for header in headers for info in header.tensors)
