"""A safetensors file of tensors whose sizes are known only as they come, each aligned to its own element.

Loaders map tensors in place, which needs offsets that are multiples of the element's width. So tensors are gathered in
one file for each width and put together at the end, the widest elements first, as the safetensors library orders them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from skillgraft.checkpoint.header import DTYPE_BYTES, TensorSpec, encode_header
from skillgraft.errors import CheckpointError


class SortedWriter:
    """Collects tensors in temporary files beside `path`, which appears when the `with` block ends without exception."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self._path, self._metadata = path, dict(metadata)
        self._files: dict[int, BinaryIO] = {}
        self._specs: dict[int, list[TensorSpec]] = {}

    def __enter__(self) -> SortedWriter:
        return self

    def add(self, spec: TensorSpec, data: memoryview) -> None:
        """Append one tensor; `CheckpointError` when the number of bytes is not that of its spec."""
        if data.nbytes != spec.nbytes:
            raise CheckpointError(f"tensor {spec.name!r}: got {data.nbytes} bytes, its shape takes {spec.nbytes}")
        width = DTYPE_BYTES[spec.dtype]
        if width not in self._files:
            self._files[width] = self._part(width).open("xb")
            self._specs[width] = []
        self._files[width].write(data)
        self._specs[width].append(spec)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        widths = sorted(self._files, reverse=True)
        if kind is None:
            with open(self._path, "xb") as out:
                out.write(encode_header([spec for width in widths for spec in self._specs[width]], self._metadata))
                for width in widths:
                    with open(self._part(width), "rb") as file:
                        shutil.copyfileobj(file, out, 1 << 20)
                    self._part(width).unlink()

    def _part(self, width: int) -> Path:
        return self._path.with_name(f"{self._path.name}.of-{width}-bytes")
