"""Buffers that one thread uses again and again, so that a tensor of any size needs the memory of a few tiles."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from skillgraft.checkpoint.header import TensorInfo
from skillgraft.errors import CheckpointError

KEPT = 8


class Scratch:
    """The buffers of one thread, each known by a key; one that is too small is replaced by a larger one."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self._buffers: dict[tuple[Hashable, torch.dtype, str], Tensor] = {}

    def empty(self, key: Hashable, elements: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """Return `elements` uninitialised elements in the buffer `key`."""
        device = device or self.device
        place = (key, dtype, device.type)
        buffer = self._buffers.get(place)
        if buffer is None or len(buffer) < elements:
            buffer = self._buffers[place] = torch.empty(elements, dtype=dtype, device=device)
        return buffer if len(buffer) == elements else buffer[:elements]

    def like(self, key: Hashable, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return an uninitialised buffer of the length and device of `tensor`."""
        return self.empty(key, len(tensor), dtype, tensor.device)

    def from_host(self, key: Hashable, host: Tensor) -> Tensor:
        """Return a CPU tensor in fp64 on this scratch's device, in the buffer `key`."""
        return self.empty(key, len(host), torch.float64).copy_(host)


class Files:
    """Files opened once for reading, shared by all threads (`pread` moves no position).

    `kept` holds the few whole tensors that tiles need again and again (low-rank factors), the last ones asked for.
    """

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = Lock()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def kept(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` gave for `key`, made anew when it is not among the last few."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def read(self, info: TensorInfo, begin: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `begin` of the tensor's data; `CheckpointError` when the file ends before."""
        handle = self._handles.get(info.file)
        if handle is None:
            with self._lock:
                handle = self._handles.get(info.file)
                if handle is None:
                    handle = self._handles[info.file] = os.open(info.file, os.O_RDONLY | os.O_CLOEXEC)
        done = 0
        while done < len(buffer):
            count = os.preadv(handle, [buffer[done:] if done else buffer], info.begin + begin + done)
            if not count:
                raise CheckpointError(
                    f"{info.file}: ended while tensor {info.name!r} was read: it changed since its header was read"
                )
            done += count
