#!/usr/bin/env python3
"""Restores one revision of a backy store. Written from docs/format.md alone, to show that the page is enough."""

import argparse
import os
import re
import struct
import sys

import blake3
import zstandard

CHUNK, FRAME, PAGE = 4 << 20, 64 << 10, 2048
HOLE = bytes(32)


class Damaged(Exception):
    """Something in the store is not as docs/format.md says."""


def require(condition, what):
    if not condition:
        raise Damaged(what)


def blake(*parts):
    hasher = blake3.blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def read(path, limit):
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    require(len(content) <= limit, f"{path}: longer than {limit} bytes")
    return content


def top_level(text):
    """The scalars of a YAML mapping that stand on the line of their key."""
    found = re.findall(r"^([a-z_-]+): *(\S.*?) *$", text, re.MULTILINE)
    return {key: value.strip("'\"") for key, value in found}


def chunk_store(store, job):
    """The nearest directory at or above the job that is marked as a store."""
    root = next((path for path in (os.path.join(store, job), store) if os.path.exists(f"{path}/backy.store")), None)
    require(root, f"{store}: no backy.store here")
    version = top_level(read(f"{root}/backy.store", 1 << 20).decode()).get("format")
    require(version == "1", f"{root}: format {version} is not supported")
    return root


def read_manifest(path, revision):
    content = read(path, 1 << 20)
    sealed, line, seal = content.rpartition(b"\nseal: ")
    require(line and re.fullmatch(rb"[0-9a-f]{64}\n?", seal), f"{path}: no seal")
    require(blake(sealed + b"\n").hex() == seal.decode().strip(), f"{path}: wrong seal")
    keys = top_level(content.decode())
    require(keys.get("uuid") == revision, f"{path}: is of revision {keys.get('uuid')}")
    require(keys.get("backend_type") == "framed", f"{path}: backend_type {keys.get('backend_type')} is not supported")
    return int(keys["image_size"]), bytes.fromhex(keys["map_seal"])


def read_map(path, size, seal):
    """What lies at each place: the chunk's id, and its base's or zeros."""
    entries = -(-size // CHUNK)
    pages = -(-entries // PAGE)
    content = read(path, 64 + 64 * pages + 64 * entries)
    version = int.from_bytes(content[8:10], "little")
    head = struct.pack("<8sHBBIQQ", b"BACKYMAP", version, 22, 0, PAGE, size, entries)
    require(version in (1, 2) and content[:32] == head, f"{path}: header does not fit an image of {size} bytes")
    table, body = content[64 : 64 + 32 * pages], content[64 + 32 * pages :]
    base_table, rest = b"", b""
    if version == 2:
        base_table, rest = body[32 * entries :][: 32 * pages], body[32 * entries + 32 * pages :]
        body = body[: 32 * entries]
    require(len(body) == 32 * entries and len(table) == 32 * pages, f"{path}: wrong length")
    require(content[32:64] == seal == blake(head, table, base_table), f"{path}: wrong seal")
    bases = b""
    for page in range(pages):
        part = body[32 * PAGE * page : 32 * PAGE * (page + 1)]
        require(blake(part) == table[32 * page : 32 * page + 32], f"{path}: page {page} is damaged")
        expected = base_table[32 * page : 32 * page + 32]
        if expected in (b"", HOLE):
            bases += bytes(len(part))
        else:
            require(blake(rest[: len(part)]) == expected, f"{path}: page of bases {page} is damaged")
            bases, rest = bases + rest[: len(part)], rest[len(part) :]
    require(not rest, f"{path}: wrong length")
    return [(body[at : at + 32], bases[at : at + 32]) for at in range(0, 32 * entries, 32)]


def decode(kind, stored, length, name, base):
    if kind == 0 and not stored:
        return bytes(length)
    if kind == 1 and len(stored) == length:
        return stored
    if kind == 3 and base and not stored:
        return base
    require(kind == 2 or kind == 4 and base, f"{name}: kind {kind}")
    require(1 <= len(stored) < length, f"{name}: kind {kind} with {len(stored)} stored bytes")
    require(zstandard.frame_content_size(stored) in (-1, length), f"{name}: unpacks to another length")
    prefix = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if kind == 4 else None
    decompressor = zstandard.ZstdDecompressor(dict_data=prefix)
    unpacked = decompressor.decompress(stored, max_output_size=length, allow_extra_data=False)
    require(len(unpacked) == length, f"{name}: unpacks to {len(unpacked)} bytes")
    return unpacked


def read_chunk(root, identity, base, length):
    """A chunk's bytes, from its full form if that is there and can be read."""
    folder = f"{root}/chunks/{identity.hex()[:2]}"
    full = f"{folder}/{identity.hex()}"
    try:
        return read_file(full, identity, length, None, b"")
    except (Damaged, OSError):
        if base == HOLE:
            raise
    leaning_on = read_chunk(root, base, HOLE, length)
    return read_file(f"{full}.{base.hex()}", identity, length, base, leaning_on)


def read_file(path, identity, length, base, base_bytes):
    content = read(path, 64 + 64 * 36 + CHUNK)
    frames = -(-length // FRAME)
    head, total = content[:20], int.from_bytes(content[20:24], "little")
    flags, table = (1, 64) if base else (0, 32)
    require(head == struct.pack("<8sHBBII", b"BACKYCHK", 1, 16, flags, length, frames), f"{path}: wrong header")
    if base:
        require(content[32:64] == base != identity and frames > 1, f"{path}: wrong base")
    else:
        require(content[24:32] == bytes(8), f"{path}: wrong header")
    position = table + 36 * frames
    require(len(content) == position + total, f"{path}: wrong length")
    chunk = bytearray()
    for number in range(frames):
        word, _value = struct.unpack_from("<I32s", content, table + 36 * number)
        kind, stored = word >> 24, content[position : position + (word & 0xFFFFFF)]
        name = f"{path}: frame {number}"
        require(len(stored) == word & 0xFFFFFF, f"{name}: lies beyond the end")
        from_base = base_bytes[number * FRAME : (number + 1) * FRAME]
        chunk += decode(kind, stored, min(FRAME, length - number * FRAME), name, from_base)
        position += len(stored)
    require(position == len(content), f"{path}: bytes behind the last frame")
    require(blake(chunk) == identity, f"{path}: content does not match the id")
    return chunk


def write_image(root, places, size, target):
    target.truncate(size)
    for number, (identity, base) in enumerate(places):
        if identity != HOLE:
            target.seek(number * CHUNK)
            target.write(read_chunk(root, identity, base, min(CHUNK, size - number * CHUNK)))


def restore(store, job, revision, output):
    require(re.fullmatch(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}", job), f"{job!r} is no name of a job")
    require(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", revision), f"{revision!r} is no id of a revision")
    root, base = chunk_store(store, job), os.path.join(store, job, revision)
    size, seal = read_manifest(f"{base}.rev", revision)
    places = read_map(f"{base}.map", size, seal)
    with open(output, "xb") as target:
        try:
            write_image(root, places, size, target)
        except BaseException:
            os.unlink(output)
            raise


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("store", "job", "revision", "output"):
        parser.add_argument(name, metavar=name.upper())
    arguments = parser.parse_args()
    try:
        restore(**vars(arguments))
    except (Damaged, OSError, ValueError, KeyError, zstandard.ZstdError) as error:
        sys.exit(f"error: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
