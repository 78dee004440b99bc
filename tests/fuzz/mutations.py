"""Mutations of files: of bytes, of the tree that JSON or YAML says, and of a safetensors file's header."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import yaml

Mutation = Callable[[random.Random, bytes], bytes]

ODD_NUMBERS = (0, -1, 1, 2**31, 2**63, 10**400, -(10**30), 1.5, 1e308, float("nan"), float("inf"), -0.0, True)
ODD_TEXTS = (
    "",
    " ",
    "\x1b[2J\x1b[31mred",
    "\u202etxt.exe",
    "\ud800",
    "a\x00b",
    "../../etc/passwd",
    "/dev/zero",
    "é" * 5000,
    "{{ 7 * 7 }}",
    "{% for a in range(10**9) %}{% endfor %}",
    "NaN",
    "decoder:99",
)
WHOLE = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"0",
    b"\xff\xfe",
    b"\x00" * 64,
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"1" * 10_000,
    b"a: &x [*x]\n",
    b"a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n",
)
"""What takes the place of a whole file."""


def mutate_bytes(random: random.Random, content: bytes) -> bytes:
    """Flip, cut, insert, repeat, blank or replace."""
    data = bytearray(content)
    at = random.randrange(len(data)) if data else 0
    way = random.randrange(7)
    if way == 0:
        for _ in range(random.choice((1, 1, 1, 4, 32))):
            if data:
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif way == 1:
        del data[at:]
    elif way == 2:
        data[at:at] = random.randbytes(random.choice((1, 8, 64)))
    elif way == 3:
        data[at:at] = data[at : at + random.choice((1, 16, 256))]
    elif way == 4:
        end = min(len(data), at + random.choice((1, 8, 64)))
        data[at:end] = bytes(end - at)
    elif way == 5:
        data += random.randbytes(random.choice((1, 16)))
    else:
        return random.choice(WHOLE)
    return bytes(data)


def mutate_tree(random: random.Random, tree: Any) -> Any:
    """One change somewhere in what JSON can say, or a few."""
    root = [_copied(tree)]
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        holder, key = random.choice(_places(root))
        _change(random, root, holder, key)
    return root[0]


def _copied(tree: Any) -> Any:
    """A copy by way of JSON, which goes deeper than `copy.deepcopy`."""
    return json.loads(json.dumps(tree))


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Every container below ``root`` with each of its keys."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting and len(found) < 20_000:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


def _change(random: random.Random, root: list[Any], holder: Any, key: Any) -> None:
    value = holder[key]
    way = random.randrange(10)
    if way == 0 and holder is not root:
        del holder[key]
    elif way == 1:
        holder[key] = random.choice(ODD_NUMBERS)
    elif way == 2:
        holder[key] = random.choice(ODD_TEXTS)
    elif way == 3:
        holder[key] = random.choice((None, [], {}, [None], {"a": 1}, False))
    elif way == 4:
        holder[key] = [value] if random.random() < 0.5 else {"inner": value}
    elif way == 5 and isinstance(holder, dict):
        holder[random.choice(("unknown", "format", "version", "__class__", "\u0000", str(key).upper()))] = value
    elif way == 6 and isinstance(value, list) and value:
        value.insert(random.randrange(len(value)), _copied(random.choice(value)))
    elif way == 7:
        other, its = random.choice(_places(root))
        holder[key] = _copied(other[its])
    elif way == 8 and isinstance(value, int | float) and abs(value) < 1e300:
        holder[key] = random.choice((str(value), -value, value + 1, value * 2, float(value), value * 10**6))
    else:
        for _ in range(random.choice((3, 30, 300))):
            value = [value]
        holder[key] = value


def mutate_json(random: random.Random, content: bytes) -> bytes:
    """Structured three times of four, else of bytes."""
    if random.random() < 0.25:
        return mutate_bytes(random, content)
    return _dump(mutate_tree(random, json.loads(content)))


def mutate_yaml(random: random.Random, content: bytes) -> bytes:
    """Structured three times of four, else of bytes."""
    if random.random() < 0.25:
        return mutate_bytes(random, content)
    tree = mutate_tree(random, yaml.safe_load(content))
    try:
        return yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        return _dump(tree)  # JSON is YAML too


def mutate_safetensors(random: random.Random, content: bytes) -> bytes:
    """The header's tree, its stated length, or bytes anywhere."""
    way = random.randrange(4)
    length = int.from_bytes(content[:8], "little")
    if way == 0:
        return mutate_bytes(random, content)
    if way == 1:
        stated = random.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
        return stated.to_bytes(8, "little") + content[8:]
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    ours = [name for name, text in metadata.items() if text.startswith("{")]  # a header within the header
    if way == 2 and ours:
        metadata[ours[0]] = mutate_json(random, metadata[ours[0]].encode()).decode("latin-1")
        changed = _dump(header)
    else:
        changed = _dump(mutate_tree(random, header))
    return len(changed).to_bytes(8, "little") + changed + content[8 + length :]


def _dump(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "surrogatepass")


BY_SUFFIX: dict[str, Mutation] = {
    ".json": mutate_json,
    ".yaml": mutate_yaml,
    ".safetensors": mutate_safetensors,
}
"""How files of a suffix are mutated; others by their bytes alone."""
