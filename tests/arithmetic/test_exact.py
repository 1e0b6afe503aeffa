"""Bit for bit an fp64 reference rounded once, on many random elements in every dtype; 10⁸ of them in the slow suite."""

import shutil

import numpy as np
import pytest

from skillgraft.arithmetic import extract, inject, merge
from skillgraft.checkpoint.header import TensorSpec, encode_header, read_header
from tests.tiny import tiny_checkpoint

NAME = "model.norm.weight"
PIECE = 1 << 22
CODES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def to_double(raw, code):
    return (
        (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if code == "BF16" else raw.astype(np.float64)
    )


def once(values, code):
    """fp64 rounded to the nearest, ties to even, in one step: of bf16 on the bits themselves."""
    if code != "BF16":
        return values.astype(CODES[code])
    bits = values.view(np.uint64)
    kept = (bits + np.uint64((1 << 44) - 1) + ((bits >> np.uint64(45)) & np.uint64(1))) >> np.uint64(45)
    rounded = (kept << np.uint64(45)).view(np.float64).astype(np.float32)  # exact: 8 significant bits
    return (rounded.view(np.uint32) >> 16).astype(np.uint16)


def write(path, source, code, elements, seed, near=None):
    """A checkpoint of one long vector: random numbers, or `near` another one's by a small step."""
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("*.safetensors"))
    rng = np.random.default_rng(seed)
    with (path / "model.safetensors").open("wb") as file:
        file.write(encode_header([TensorSpec(NAME, code, (elements,))], {"format": "pt"}))
        for start in range(0, elements, PIECE):
            values = rng.standard_normal(min(PIECE, elements - start))
            if near is not None:
                values = read(near, start, start + len(values), code) + values * 0.01
            file.write(once(values, code).tobytes())
    return path


def raw(path, start, stop, code, name=NAME, file="model.safetensors"):
    info = next(info for info in read_header(path / file).tensors if info.name == name)
    return np.fromfile(info.file, CODES[code], stop - start, offset=info.begin + start * CODES[code]().itemsize)


def read(path, start, stop, code, **where):
    return to_double(raw(path, start, stop, code, **where), code)


@pytest.fixture(params=[1 << 20, pytest.param(10**8, marks=pytest.mark.slow)])
def elements(request):
    return request.param


@pytest.mark.parametrize("code", CODES)
def test_every_element(tmp_path, elements, code):
    tiny = tiny_checkpoint(tmp_path / "tiny")
    base = write(tmp_path / "base", tiny, code, elements, 0)
    a = write(tmp_path / "a", tiny, code, elements, 1, near=base)
    b = write(tmp_path / "b", tiny, code, elements, 2, near=base)
    far = write(tmp_path / "far", tiny, code, elements, 3)

    def compare(out, formula, *operands):
        wrong = 0
        for start in range(0, elements, PIECE):
            stop = min(start + PIECE, elements)
            expected = once(formula(*(read(o, start, stop, code) for o in operands)), code)
            wrong += int((raw(out, start, stop, code) != expected).sum())
        assert wrong == 0
        shutil.rmtree(out)

    out = tmp_path / "out"
    merge(
        {"method": "linear", "base": a, "operands": [{"model": a, "weight": 0.3}, {"model": far, "weight": 0.6}]}, out
    )
    compare(out, lambda x, y: (x * 0.3 + y * 0.6) / (0.3 + 0.6), a, far)
    given = [{"model": a, "minus": b, "weight": 0.7}, {"model": far, "weight": -0.45}]
    merge({"method": "task_arithmetic", "base": base, "operands": given}, out)
    compare(out, lambda t, x, y, z: ((x - y) * 0.7 + (z - t) * -0.45) + t, base, a, b, far)
    skill = extract(a, base, tmp_path / "skill")
    for start in range(0, elements, PIECE):
        stop = min(start + PIECE, elements)
        exact = read(a, start, stop, code) - read(base, start, stop, code)
        stored = raw(skill.path, start, stop, "F32", file="skill.safetensors")
        assert (stored == exact.astype(np.float32)).all()
    inject(b, skill, out, scale=0.9, allow_other_base=True)

    def injected(start, stop):
        delta = raw(skill.path, start, stop, "F32", file="skill.safetensors").astype(np.float64)
        return delta * 0.9 + read(b, start, stop, code)

    wrong = sum(
        int((raw(out, s, min(s + PIECE, elements), code) != once(injected(s, min(s + PIECE, elements)), code)).sum())
        for s in range(0, elements, PIECE)
    )
    assert wrong == 0
    shutil.rmtree(out)
    report = inject(b, skill, out, scale=0, allow_other_base=True)
    assert (out / "model.safetensors").stat().st_size >= (b / "model.safetensors").stat().st_size
    compare(out, lambda x: x, b)
    assert report["survived_rounding"] == 1.0
