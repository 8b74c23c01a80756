#!/usr/bin/env python3
"""Checks frame values against docs/format.md section 3, with a BLAKE3 in plain Python: of chunk files, that they are
those of the frames and combine to the id, and of the recipes of a group, that they combine to the ids of their chunks.
And of chunk files that the hash of the whole file stands at the end.

The blake3 module hashes whole inputs only, so the chaining values are made here, slowly: about a second for
each frame. `tests/format/check` runs this on small chunks.
"""

import struct
import sys

import blake3
from read_store import FRAME, decode

START, END, PARENT, ROOT = 1, 2, 4, 8
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def turn(word, bits):
    return (word >> bits | word << (32 - bits)) & 0xFFFFFFFF


def mix(state, places, first, second):
    a, b, c, d = places
    for message, left, right in ((first, 16, 12), (second, 8, 7)):
        state[a] = (state[a] + state[b] + message) & 0xFFFFFFFF
        state[d] = turn(state[d] ^ state[a], left)
        state[c] = (state[c] + state[d]) & 0xFFFFFFFF
        state[b] = turn(state[b] ^ state[c], right)


def compress(value, block, counter, flags):
    words = list(struct.unpack("<16I", block.ljust(64, b"\0")))
    state = [*value, *IV[:4], counter & 0xFFFFFFFF, counter >> 32, len(block), flags]
    for _ in range(7):
        for number, places in enumerate(COLUMNS + DIAGONALS):
            mix(state, places, words[2 * number], words[2 * number + 1])
        words = [words[place] for place in ORDER]
    return [low ^ high for low, high in zip(state[:8], state[8:])]


def leaf(data, counter, root):
    """The value of up to 1 KiB, the smallest unit of the tree."""
    value = IV
    blocks = [data[at : at + 64] for at in range(0, len(data), 64)] or [b""]
    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        flags = (START if number == 0 else 0) | (END | root if last else 0)
        value = compress(value, block, counter, flags)
    return value


def combine(values, root):
    """The value above a row of values: the left part has the largest power of two that leaves something right."""
    if len(values) == 1:
        return values[0]
    split = 1 << (len(values) - 1).bit_length() - 1
    pair = combine(values[:split], 0) + combine(values[split:], 0)
    return compress(IV, struct.pack("<16I", *pair), 0, PARENT | root)


def tree(data, counter, root):
    """The value of the bytes that begin at leaf `counter`, with the flag `root` on its last step."""
    leaves = [data[at : at + 1024] for at in range(0, len(data), 1024)]
    if len(leaves) == 1:
        return leaf(data, counter, root)
    return combine([leaf(part, counter + number, 0) for number, part in enumerate(leaves)], root)


def packed(value):
    return struct.pack("<8I", *value)


def check_group(path, content):
    lists_at, files, recipes = struct.unpack("<QII", content[-120:-104])
    for number in range(recipes):
        listed = lists_at + 33 * files + 40 * number
        identity, offset, _length = struct.unpack_from("<32sII", content, listed)
        runs, length, _base, donors = struct.unpack_from("<HIII", content, offset + 2)
        at = offset + 16 + 20 * runs + 12 * donors
        values = [list(struct.unpack_from("<8I", content, at + 32 * frame)) for frame in range(-(-length // FRAME))]
        if packed(combine(values, ROOT)) != identity:
            sys.exit(f"error: {path}: the values of the recipe at {offset} do not combine to its id")


def check(path):
    with open(path, "rb") as file:
        content = file.read()
    if path.endswith(".group"):
        check_group(path, content)
        return
    length, frames = struct.unpack_from("<II", content, 12)
    position, values, whole = 32 + 36 * frames, [], b""
    for number in range(frames):
        word, value = struct.unpack_from("<I32s", content, 32 + 36 * number)
        stored = content[position : position + (word & 0xFFFFFF)]
        frame = decode(word >> 24, stored, min(FRAME, length - number * FRAME), f"{path}: frame {number}")
        if packed(tree(frame, number * FRAME // 1024, ROOT if frames == 1 else 0)) != value:
            sys.exit(f"error: {path}: wrong value of frame {number}")
        position, whole = position + len(stored), whole + frame
        values.append(list(struct.unpack("<8I", value)))
    if position + 32 != len(content) or blake3.blake3(content[:position]).digest() != content[position:]:
        sys.exit(f"error: {path}: no hash of the file behind the last frame, or a wrong one")
    identity = path.rsplit("/", 1)[-1]
    if packed(combine(values, ROOT)).hex() != identity or blake3.blake3(whole).hexdigest() != identity:
        sys.exit(f"error: {path}: the values do not combine to the id")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        check(name)
