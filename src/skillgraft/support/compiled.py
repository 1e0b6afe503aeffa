"""Functions compiled by Numba once and kept as object code: later runs load them by LLVM alone, without Numba.

Importing Numba and setting up its types costs a quarter of a second of every command; loading object code costs some
milliseconds. What is kept is native code in a cache of one's own, as Numba's own cache is: by the sources it was made
of, by the versions of Numba and llvmlite, and by the processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from skillgraft.support.atomic import atomic_write_bytes
from skillgraft.support.cache import cache_home

_SCALARS: dict[str, Any] = {"i8": ctypes.c_int64, "f8": ctypes.c_double, "b1": ctypes.c_int64}
_NUMBA = {"u1": "uint8", "b1": "boolean", "i4": "int32", "i8": "int64", "f4": "float32", "f8": "float64"}
# What generated code mentions for errors that these functions cannot meet: lengths of views are whole, nothing raises.
_NEVER_CALLED = re.compile(r"Py\w+|_Py\w+|NRT_\w+|numba_\w+")
_ALLOCATES = re.compile(r"NRT_(?!Free\b|MemInfo_call_dtor\b|decref\b|incref\b)\w*")


class Compiled:
    """A function of the module `module`, compiled for arguments of fixed types and callable from several threads.

    `arguments` are types in NumPy's codes: `f8` a number, `f8[:]` and `f8[:,:]` C-contiguous arrays, which are read,
    `=f8[:]` one that is written (it must have that very type); b1, i8 and f8 are numbers. `result` is the type of what
    is returned, several for a tuple, empty for nothing. The function must allocate nothing and raise nothing.
    `sources` are further modules whose code goes into it.
    """

    def __init__(self, module: str, name: str, arguments: str, result: str = "", sources: Sequence[str] = ()) -> None:
        self._module, self._name, self._sources = module, name, (module, *sources)
        self._arguments, self._result = arguments.split(), result.split()
        self._ways = [_way(argument) for argument in self._arguments]
        self._call: Callable[..., Any] | None = None
        self._plain: Callable[..., Any] | None = None
        self._lock = Lock()

    def __call__(self, *arguments: Any) -> Any:
        """Call it; arrays that are only read are converted where they have another type."""
        call = self._call or self._load()
        if call is self._plain:
            return call(*arguments)
        words: list[Any] = []
        alive = []  # what was converted must live until the call ends
        for way, argument in zip(self._ways, arguments, strict=True):
            alive.append(way(argument, words))
        out = (ctypes.c_double * 4)()
        call(*words, out)
        del alive
        if not self._result:
            return None
        results = [_NATIVE[code](value) for code, value in zip(self._result, out, strict=False)]
        return results[0] if len(results) == 1 else tuple(results)

    def _load(self) -> Callable[..., Any]:
        with self._lock:
            if self._call is None:
                key = self._key()
                code = _read(self._name, key) or self._compile_and_keep(key)
                if code is None:
                    self._call = self._plain
                else:
                    self._call = ctypes.CFUNCTYPE(None, *self._types(), ctypes.c_void_p)(_link(code))
            assert self._call is not None
            return self._call

    def _types(self) -> list[Any]:
        types: list[Any] = []
        for kind, dimensions in map(_parts, self._arguments):
            types += [ctypes.c_void_p, *[ctypes.c_int64] * dimensions] if dimensions else [_SCALARS[kind]]
        return types

    def _compile_and_keep(self, key: str) -> bytes | None:
        """Compile and keep; None, with Numba's own function in `_plain`, where this Numba gives no object code."""
        function = getattr(importlib.import_module(self._module), self._name)
        try:
            code = self._compile(function)
        except AttributeError:
            self._plain = function
            return None
        _write(self._name, key, code)
        return code

    def _key(self) -> str:
        digest = hashlib.sha256()
        for part in (self._name, *self._arguments, "->", *self._result, *_processor()):
            digest.update(part.encode() + b"\0")
        for source in (*map(_source, (__name__, *self._sources)), _source("numba").with_name("_version.py")):
            digest.update(source.read_bytes() if source.exists() else b"")
        return digest.hexdigest()[:24]

    def _compile(self, inner: Any) -> bytes:
        """Return the name of a C function around the compiled one, a zero, and its object code."""
        from numba import carray, cfunc, types

        names, arrays, values, signature = [], [], [], []
        for number, argument in enumerate(self._arguments):
            kind, dimensions = _parts(argument)
            names.append(f"a{number}")
            if dimensions:
                extents = [f"n{number}_{axis}" for axis in range(dimensions)]
                names += extents
                signature += [types.CPointer(getattr(types, _NUMBA[kind])), *[types.int64] * dimensions]
                arrays.append(f"    v{number} = carray(a{number}, ({', '.join(extents)},))")
                values.append(f"v{number}")
            else:
                signature.append(types.float64 if kind == "f8" else types.int64)
                values.append(f"a{number} != 0" if kind == "b1" else f"a{number}")
        call = f"inner({', '.join(values)})"
        if len(self._result) > 1:
            body = [f"    found = {call}", *[f"    out[{n}] = found[{n}]" for n in range(len(self._result))]]
        else:
            body = [f"    out[0] = {call}" if self._result else f"    {call}"]
        source = "\n".join([f"def skillgraft_{self._name}({', '.join([*names, 'out'])}):", *arrays, *body])
        space = {"carray": carray, "inner": inner}
        exec(compile(source, f"<{self._name}>", "exec"), space)
        function: Any = cfunc(types.void(*signature, types.CPointer(types.float64)))(space[f"skillgraft_{self._name}"])
        library = function._library
        text = library.get_llvm_str()
        declared = set(re.findall(r'^declare [^@]*@"?([\w.$]+)"?\(', text, re.M))
        wrong = [name for name in declared if _ALLOCATES.fullmatch(name)]
        if wrong:
            raise RuntimeError(f"{self._name} allocates memory ({wrong[0]}); expected room among its arguments")
        return function._wrapper_name.encode() + b"\0" + library._get_compiled_object()


def _source(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"the source of {module} is nowhere to be found; install it: python -m pip install {module}")
    return Path(spec.origin)


def _way(argument: str) -> Callable[[Any, list[Any]], Any]:
    """Return the converter of an argument: it appends its words to those of a call and returns what must stay alive."""
    kind, dimensions = _parts(argument)
    if not dimensions:
        convert = float if kind == "f8" else int

        def number(value: Any, words: list[Any]) -> None:
            words.append(convert(value))

        return number
    dtype, written = np.dtype(kind), argument.startswith("=")

    def array(value: Any, words: list[Any]) -> Any:
        writeable = value.flags.writeable
        if written and not writeable:
            raise TypeError("expected an array to write into, got one that is read only")
        if value.dtype != dtype or not value.flags.c_contiguous:
            if written:
                raise TypeError(f"expected a C-contiguous array of {dtype} to write into, got {value.dtype}")
            value = np.ascontiguousarray(value, dtype=dtype)
        if value.ndim != dimensions:
            raise TypeError(f"expected {dimensions} dimensions, got {value.ndim}")
        if writeable and value.size:  # 5× faster than `__array_interface__`
            words.append(ctypes.addressof(ctypes.c_char.from_buffer(value)))
        else:
            words.append(value.__array_interface__["data"][0])
        words.extend(value.shape)
        return value

    return array


_NATIVE: dict[str, Callable[[float], Any]] = {"b1": bool, "i8": int, "f8": float}


def _parts(argument: str) -> tuple[str, int]:
    kind, _, extents = argument.removeprefix("=").partition("[")
    return kind, extents.count(":")


@cache
def _processor() -> tuple[str, str, str]:
    import llvmlite
    import llvmlite.binding as llvm

    return llvmlite.__version__, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


@cache
def _engine() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


@ctypes.CFUNCTYPE(None)
def _never() -> None:
    os.abort()


_linking = Lock()


def _link(code: bytes) -> int:
    """Load what `_compile` returned into the process; return the address of its function."""
    import llvmlite.binding as llvm

    name, _, code = code.partition(b"\0")
    with _linking:
        engine = _engine()
        file = llvm.ObjectFileRef.from_data(code)
        for symbol in filter(_NEVER_CALLED.fullmatch, {word.decode() for word in re.findall(rb"[\w.$]+", code)}):
            if llvm.address_of_symbol(symbol) is None:  # Numba, where it is imported later, puts its own in place
                known = getattr(ctypes.pythonapi, symbol, _never)
                llvm.add_symbol(symbol, ctypes.cast(known, ctypes.c_void_p).value)
        engine.add_object_file(file)
        engine.finalize_object()
        address = engine.get_function_address(name.decode())
    return int(address)


def folders() -> list[Path]:
    """Return where object code may lie: beside this package, as Python's own byte code, or in the user's cache."""
    return [Path(__file__).parent / "__pycache__", cache_home() / "kernels"]


def folder() -> Path | None:
    """Return the first of `folders` that can be written; None where none can."""
    for place in folders():
        existing = next(path for path in (place, *place.parents) if path.exists())
        if existing.is_dir() and os.access(existing, os.W_OK):
            return place
    return None


def _read(name: str, key: str) -> bytes | None:
    for folder in folders():
        try:
            content = (folder / f"{name}-{key}.o").read_bytes()
        except OSError:
            continue
        digest, code = content[:32], content[32:]
        if hashlib.sha256(code).digest() == digest:  # else it is damaged, and compiled again
            return code
    return None


def _write(name: str, key: str, code: bytes) -> None:
    """Keep object code in the first place that can be written, in place of what was kept for other sources."""
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            new = folder / f"{name}-{key}.o"
            atomic_write_bytes(new, hashlib.sha256(code).digest() + code)
            for old in folder.glob(f"{name}-*.o"):
                if old != new:
                    old.unlink(missing_ok=True)
            return
        except OSError:
            continue
