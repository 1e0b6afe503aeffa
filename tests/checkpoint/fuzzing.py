"""Damaged checkpoints made from a valid one, each by a seed: bytes flipped, cut, inserted; JSON values made hostile."""

import json
import random

HOSTILE_VALUES = (
    "-1", "0", "1", "true", "false", "null", "1.5", "-0.0", "NaN", "Infinity", "-Infinity", "1e999", "2.0",
    str(2**31), str(2**63 - 1), str(2**63), str(2**64), "1" + "0" * 400, "9" * 5000, "-" + "9" * 4000,
    "[]", "{}", "[[]]", "[0]", "[-1]", "[0,0]", "[8,0]", "[true]", "[1.0]", '[""]', '["F32"]', "[0,0,0]",
    f"[{2**62},{2**62},0]", f"[0,{2**62},{2**62}]", f"[{2**62},{2**62}]", "[" + "1," * 3000 + "1]",
    "[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000, "[" * 100_000, '{"a":{"a":1,"a":2}}',
    '""', '"\\ud800"', '"\\udfff\\ud800"', '"a\\u0000b"', '"\\n"', '"\\u001b[31m"', '"\\u202e"', '"' + "x" * 9000 + '"',
    '"F8_E4M3"', '"F8_E5M2"', '"F4"', '"BF16"', '"F64"', '"U8"', '"Q4_K"', '"I32"',
    '"../outside.safetensors"', '"/etc/passwd"', '"..\\\\outside.safetensors"', '"."', '".."', '"config.json"',
    '"C:\\\\x.safetensors"', '"sub/x.safetensors"', '"' + "n" * 300 + '.safetensors"', '"absent.safetensors"',
    '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}', '{"quant_method":"gptq"}', "\ufeff", "\x00", "", "'x'", "{",
)  # fmt: skip
HOSTILE_NAMES = (
    '""', '"__metadata__"', '"\\ud800"', '"a\\u0000"', '"\\n"', '"dtype"', '"shape"', '"data_offsets"', '"weight_map"',
    '"model.norm.weight"', '"model.norm.weight.absmax"', '"quantization_config"', '"../x"', '"' + "k" * 9000 + '"', "3",
)  # fmt: skip


def damage(contents, rng):
    """Return a copy of `contents` (bytes by file name) with one to three files or places of a file damaged."""
    damaged = dict(contents)
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(sorted(damaged))
        mutate = rng.choice((_flip, _truncate, _insert, _cut, _repeat, _splice, *(_restructure,) * 8))
        damaged[name] = mutate(damaged[name], rng, damaged)
        if name.endswith(".safetensors") and rng.random() < 0.1:
            length = rng.choice((0, 1, 2**63, 100_000_000, 100_000_001, len(damaged[name]), rng.randrange(2**16)))
            damaged[name] = length.to_bytes(8, "little") + damaged[name][8:]
    return damaged


def _flip(content, rng, _):
    changed = bytearray(content)
    # Mostly early in the file, where lengths and headers lie.
    for _ in range(rng.randrange(1, 9) if changed else 0):
        changed[rng.randrange(min(len(changed), rng.choice((8, 200, 10**9))))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(content, rng, _):
    return content[: rng.randrange(len(content) + 1)]


def _insert(content, rng, _):
    place = rng.randrange(len(content) + 1)
    new = rng.choice((b"\0" * 8, b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"{", b"[" * 2000, rng.randbytes(20)))
    return content[:place] + new + content[place:]


def _cut(content, rng, _):
    begin = rng.randrange(len(content) + 1)
    return content[:begin] + content[begin + rng.randrange(64) :]


def _repeat(content, rng, _):
    begin = rng.randrange(len(content) + 1)
    end = begin + rng.randrange(200)
    return content[:end] + content[begin:end] + content[end:]


def _splice(content, rng, contents):
    other = contents[rng.choice(sorted(contents))]
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _restructure(content, rng, _):
    """Put something hostile into the JSON of a file; a safetensors file keeps its data and a right header length."""
    text, data = content, None
    length = int.from_bytes(content[:8], "little")
    if not content.startswith(b"{"):
        text, data = content[8 : 8 + length], content[8 + length :]
    try:
        text = _hostile_json(json.loads(text), rng).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # damaged before
        return _flip(content, rng, None)
    return text if data is None else len(text).to_bytes(8, "little") + text + data


def _hostile_json(root, rng):
    """Return the text of `root` with one member deleted, renamed, repeated or replaced."""
    containers = [root]
    for container in containers:
        children = container.values() if isinstance(container, dict) else container
        containers += [child for child in children if isinstance(child, dict | list)]
        if len(containers) > 500:
            break
    container = rng.choice([one for one in containers if one] or [root])
    if not container or not isinstance(container, dict | list):
        return rng.choice(HOSTILE_VALUES)
    keys = list(container) if isinstance(container, dict) else range(len(container))
    key = keys[rng.randrange(len(keys))]
    action = rng.choice(("delete", "replace", "replace", "replace", "rename", "repeat"))
    mark, raw = "@@hostile@@", rng.choice(HOSTILE_VALUES)
    if action == "delete":
        del container[key]
    elif action == "replace" or isinstance(container, list):
        container[key] = mark
    elif action == "rename":
        container[mark], raw = container.pop(key), rng.choice(HOSTILE_NAMES)
    else:
        container[mark], raw = container[key], json.dumps(key)
    return json.dumps(root).replace(f'"{mark}"', raw)


def generator(seed):
    """Return the generator of one case."""
    return random.Random(f"skillgraft-{seed}")
