#!/usr/bin/env python3
"""Restores one revision of a backy store. Written from docs/format.md alone, to show that the page is enough."""

import argparse
import collections
import functools
import os
import re
import struct
import sys

import blake3
import zstandard

CHUNK, FRAME, PAGE, PAGE_ENTRIES = 4 << 20, 64 << 10, 4 << 10, 2048
CHUNK_FILE, GROUP = 1, 2
PATCH, COPY = 4, 5
RUN_LEN = 4_195_364
ZEROS = bytes(32)

Copy = collections.namedtuple("Copy", "file offset length there here pages")
# For the tests: how many copies from files of which kind, pieces of which kind and recipes of how many runs were used.
used = collections.Counter()


class Damaged(Exception):
    """Something in the store is not as docs/format.md says."""


def require(condition, what):
    if not condition:
        raise Damaged(what)


class Bytes:
    """Takes numbers and names from the front of bytes; `name` is for errors."""

    def __init__(self, data, name):
        self.data, self.name, self.at = data, name, 0

    def take(self, length):
        taken = self.data[self.at : self.at + length]
        require(len(taken) == length, f"{self.name}: cut off")
        self.at += length
        return taken

    def number(self, length):
        return int.from_bytes(self.take(length), "little")

    def file(self):
        """The name of a file: its kind and id."""
        kind, identity = self.number(1), self.take(32)
        require(kind in (CHUNK_FILE, GROUP), f"{self.name}: a file of kind {kind}")
        return kind, identity

    def pick(self, files, otherwise=None):
        """The file whose number in a list comes next; 2^32 - 1 stands for `otherwise`, where there is such a thing."""
        number = self.number(4)
        if number == 0xFFFFFFFF and otherwise is not None:
            return otherwise
        require(number < len(files), f"{self.name}: file {number} of {len(files)}")
        return files[number]

    def end(self):
        require(self.at == len(self.data), f"{self.name}: bytes behind its end")


def name_of(file):
    """The name of a file in its directory."""
    kind, identity = file
    return identity.hex() + (".group" if kind == GROUP else "")


def path_of(root, file):
    name = name_of(file)
    return f"{root}/chunks/{name[:2]}/{name}"


def frame_len(length, number):
    return max(0, min(FRAME, length - number * FRAME))


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
    """What lies at each place of the image: None for a hole, or the chunk's id and the place of its recipe or None."""
    entries = -(-size // CHUNK)
    pages = -(-entries // PAGE_ENTRIES)
    content = Bytes(read(path, 1 << 32), path)
    flags = content.data[11] if len(content.data) >= 64 else 0
    require(flags in (0, 1), f"{path}: flags {flags:#x} are not supported")
    head = struct.pack("<8sHBBIQQ", b"BACKYMAP", 1, 22, flags, PAGE_ENTRIES, size, entries)
    require(content.take(32) == head, f"{path}: its header does not fit an image of {size} bytes")
    own_seal, table, ids = content.take(32), content.take(32 * pages), content.take(32 * entries)
    places_table = content.take(40 * pages if flags else 0)
    require(own_seal == seal == blake(head, table, places_table), f"{path}: wrong seal")
    found = []
    for page in range(pages):
        part = ids[32 * PAGE_ENTRIES * page : 32 * PAGE_ENTRIES * (page + 1)]
        require(blake(part) == table[32 * page : 32 * page + 32], f"{path}: page {page} is damaged")
        expected, length = struct.unpack_from("<32sQ", places_table, 40 * page) if flags else (ZEROS, 0)
        places = [None] * (len(part) // 32)
        if (expected, length) != (ZEROS, 0):
            stored = content.take(length)
            require(blake(stored) == expected, f"{path}: page of places {page} is damaged")
            places = read_places(Bytes(stored, f"{path}: page of places {page}"), len(places))
        page_ids = (part[at : at + 32] for at in range(0, len(part), 32))
        for identity, place in zip(page_ids, places):
            require(identity != ZEROS or place is None, f"{path}: a recipe for a hole")
            found.append(None if identity == ZEROS else (identity, place))
    content.end()
    return found


def read_places(page, count):
    """For each entry of a page None, or group, offset and length of its recipe, and how much it needs of which file."""
    files = [page.file() for _ in range(page.number(4))]
    places = []
    for _ in range(count):
        named = page.number(1)
        if named == 0:
            places.append(None)
            continue
        require(named <= 33, f"{page.name}: a recipe with {named} files")
        offset, length = page.number(4), page.number(4)
        # The bytes of runs that the recipe needs in each file. The first file is the group that has the recipe.
        needed = [(page.pick(files), page.number(4)) for _ in range(named)]
        (kind, group), _ = needed[0]
        require(kind == GROUP, f"{page.name}: a recipe that is in no group")
        require(len(dict(needed)) == named, f"{page.name}: a recipe that names a file twice")
        places.append((group, offset, length, dict(needed)))
    page.end()
    return places


@functools.lru_cache(maxsize=64)
def read_group(root, identity):
    """All bytes of a group and the list of files that its recipes refer to."""
    path = path_of(root, (GROUP, identity))
    data = read(path, 256 << 20)
    require(data[:64] == struct.pack("<8sH6x32s16x", b"BACKYGRP", 1, identity), f"{path}: header")
    magic, lists_at, files, recipes, version, flags = struct.unpack("<8sQIIH6s", data[-128:-96])
    require((magic, version, flags) == (b"BACKYEND", 1, bytes(6)), f"{path}: version {version}, flags {flags.hex()}")
    require(blake(data[:-32]) == data[-32:], f"{path}: wrong hash")
    require(blake(data[-128:-64], identity) == data[-64:-32], f"{path}: is another group's")
    lists = Bytes(data[lists_at:-128], path)
    require(lists_at >= 64 and blake(lists.data) == data[-96:-64], f"{path}: wrong hash of the lists")
    names = [lists.file() for _ in range(files)]
    lists.take(40 * recipes)
    lists.end()
    return data, names


def record(root, group, offset, length):
    """The bytes of a recipe or run, and the list of files of its group."""
    data, files = read_group(root, group)
    name = f"{name_of((GROUP, group))} at {offset}"
    require(64 <= offset and offset + length <= len(data) - 128, f"{name}: {length} bytes there lie outside")
    return Bytes(data[offset : offset + length], name), files


@functools.lru_cache(maxsize=256)
def read_run(root, group, offset, length):
    """A run: its name for errors, the list of files of its group, and each piece's frame, kind, pages and bytes."""
    require(length <= RUN_LEN, f"{name_of((GROUP, group))} at {offset}: a run of {length} bytes")
    run, files = record(root, group, offset, length)
    count, reserved, digest = run.number(2), run.number(2), run.take(32)
    require(1 <= count <= 128 and reserved == 0, f"{run.name}: a run with {count} pieces, reserved {reserved:#x}")
    require(digest == blake(run.data[36:]), f"{run.name}: wrong hash of the run")
    heads = [struct.unpack("<BBHI", run.take(8)) for _ in range(count)]
    pieces = [(frame, kind, pages, run.take(stored_len)) for frame, kind, pages, stored_len in heads]
    run.end()
    for frame, kind, pages, _ in pieces:
        require(kind in (1, 2, PATCH, COPY), f"{run.name}: frame {frame}: kind {kind}")
        require(frame < 64 and pages, f"{run.name}: frame {frame}: pages {pages:#x}")
    for (before, one, pages, _), (frame, other, more, _) in zip(pieces, pieces[1:]):
        # The only frame with two pieces is one with a copy behind what is none.
        second = before == frame and one != COPY and other == COPY
        require(before < frame or second, f"{run.name}: the pieces of frame {frame} are not in order")
        require(before < frame or not pages & more, f"{run.name}: the pieces of frame {frame} overlap")
    return run.name, files, pieces


def decode(kind, stored, length, name, prefix=None):
    """The bytes of a frame, or of a piece that is no copy; kind 4 is unpacked with a prefix, and only there is one."""
    if kind == 0 and not stored:
        return bytes(length)
    if kind == 1 and len(stored) == length:
        return stored
    require(kind == 2 or kind == PATCH and prefix, f"{name}: kind {kind} with {len(stored)} stored bytes of {length}")
    require(1 <= len(stored) < length, f"{name}: kind {kind} with {len(stored)} stored bytes")
    require(zstandard.frame_content_size(stored) in (-1, length), f"{name}: unpacks to another length")
    base = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    unpacked = zstandard.ZstdDecompressor(base).decompress(stored, length, allow_extra_data=False)
    require(len(unpacked) == length, f"{name}: unpacks to {len(unpacked)} bytes")
    return unpacked


def read_full(root, identity, length=None):
    """A chunk that has a file of its own; of any length if none is given."""
    path = path_of(root, (CHUNK_FILE, identity))
    content = Bytes(read(path, 32 + 36 * 64 + CHUNK + 32), path)
    length = length or int.from_bytes(content.data[12:16], "little")
    require(1 <= length <= CHUNK, f"{path}: a chunk of {length} bytes")
    frames = -(-length // FRAME)
    table = [struct.unpack_from("<I", content.data, at)[0] for at in range(32, 32 + 36 * frames, 36)]
    stored_len = sum(word & 0xFFFFFF for word in table)
    head = struct.pack("<8sHBBIIIQ", b"BACKYCHK", 1, 16, 0, length, frames, stored_len, 0)
    require(content.take(32) == head, f"{path}: header does not fit a chunk of {length} bytes")
    content.take(36 * frames)
    chunk = b""
    for number, word in enumerate(table):
        stored = content.take(word & 0xFFFFFF)
        chunk += decode(word >> 24, stored, frame_len(length, number), f"{path}: frame {number}")
    digest = content.take(32)
    content.end()
    require(blake(chunk) == identity, f"{path}: content does not match the id")
    # For an image nobody has to look at it. This reader is there to find every difference from the page.
    require(blake(content.data[:-32]) == digest, f"{path}: wrong hash at the end")
    return chunk


def read_made(root, identity, place, length):
    """A chunk that is made by a recipe."""
    group, offset, recipe_len, named = place
    recipe, files = record(root, group, offset, recipe_len)
    frames, flags, count, plain_len = -(-length // FRAME), recipe.number(2), recipe.number(2), recipe.number(4)
    require(flags == 0 and 1 <= count <= 31, f"{recipe.name}: flags {flags:#x}, {count} runs")
    require(plain_len == length and frames > 1, f"{recipe.name}: is for a chunk of {plain_len} bytes")
    kind, base = recipe.pick(files, (CHUNK_FILE, None))
    require(kind == CHUNK_FILE and base != identity, f"{recipe.name}: its base")
    used["runs", count] += 1
    donor_count = recipe.number(4)
    require(donor_count <= 256, f"{recipe.name}: {donor_count} donors")
    runs = [(recipe.pick(files, (GROUP, group)), *(recipe.number(size) for size in (4, 4, 8))) for _ in range(count)]
    donors = read_donors(recipe, donor_count, files, group, count)
    recipe.take(32 * frames)
    recipe.end()
    check_place(recipe.name, named, [(GROUP, group)] + [(CHUNK_FILE, base)] * (base is not None), runs, donors)
    base = read_full(root, base, length) if base else bytes(length)
    chunk = bytearray(base)
    for number, ((kind, where), offset, run_len, wanted) in enumerate(runs):
        require(kind == GROUP and 0 < wanted < 1 << frames, f"{recipe.name}: an impossible run")
        put_run(root, (where, offset, run_len), wanted, base, chunk, donors[number])
    require(blake(chunk) == identity, f"{recipe.name}: content does not match the id")
    return bytes(chunk)


def read_donors(recipe, donor_count, files, group, run_count):
    """For each run of a recipe the files from which it has copies, with the lengths of the runs there."""
    donors, last = [{} for _ in range(run_count)], 0
    for _ in range(donor_count):
        file, run, length = recipe.pick(files, (GROUP, group)), recipe.number(4), recipe.number(4)
        name = f"{recipe.name}: the donor {name_of(file)} of run {run}"
        require(last <= run < run_count, f"{name}: there are {run_count} runs, the donor before is of run {last}")
        require(file not in donors[run], f"{name}: is there twice")
        require((file[0] == GROUP) == (length > 0), f"{name}: has {length} bytes of runs")
        donors[run][file], last = length, run
    return donors


def check_place(name, named, own, runs, donors):
    """The place in the map must name the files that a recipe refers to, with the bytes of runs that it needs there."""
    needed = dict.fromkeys(own, 0)
    for file, length in [(run[0], run[2]) for run in runs] + [donor for run in donors for donor in run.items()]:
        needed[file] = needed.get(file, 0) + length
    others = ", ".join(sorted(map(name_of, named.keys() ^ needed.keys())))
    require(not others, f"{name}: refers to other files than the map says: {others}")
    for file, length in needed.items():
        require(named[file] == length, f"{name}: needs {length} bytes of {name_of(file)}, the map says {named[file]}")


def put_run(root, place, wanted, base, chunk, donors):
    """Puts the pieces of the frames in `wanted` into the chunk; their copies must be those that `donors` speaks of."""
    run, files, pieces = read_run(root, *place)
    lacking = [frame for frame in range(64) if wanted >> frame & 1 and all(frame != piece[0] for piece in pieces)]
    require(not lacking, f"{run}: lacks frames {lacking}")
    copied_from = {}
    for frame, kind, pages, stored in pieces:
        start, length, name = frame * FRAME, frame_len(len(chunk), frame), f"{run}: frame {frame}"
        bounds = [(at, min(at + PAGE, length)) for at in range(0, FRAME, PAGE) if pages >> at // PAGE & 1]
        require(bounds[-1][0] < length, f"{name}: pages {pages:#x}")
        if kind == COPY:
            copies = read_copies(stored, pages, files, (GROUP, place[0]), name)
            require(bounds[-1][1] % PAGE == 0, f"{name}: a copy to a page that is shorter than 4096 bytes")
            # The donors of a piece that is not part of the chunk may be gone.
            copies = copies if wanted >> frame & 1 else []
            packed = b"".join(copied(root, copy, donors, name) for copy in copies)
            for copy in copies:
                copied_from.setdefault(copy.file, set()).add((copy.offset, copy.length))
        else:
            plain_len = sum(end - begin for begin, end in bounds)
            packed = decode(kind, stored, plain_len, name, base[start : start + length] if kind == PATCH else None)
        used["piece", kind] += wanted >> frame & 1
        for begin, end in bounds if wanted >> frame & 1 else ():
            chunk[start + begin : start + end], packed = packed[: end - begin], packed[end - begin :]
    found = {file: sum(length for _, length in runs) for file, runs in copied_from.items()}
    require(found == donors, f"{run}: has copies from other files or runs than the recipe's donors say")


def read_copies(stored, pages, files, group, name):
    """The copies of a piece."""
    require(len(stored) in range(16, 257, 16), f"{name}: {len(stored)} bytes of copies")
    content, copies, covered = Bytes(stored, name), [], 0
    for _ in range(len(stored) // 16):
        copy = Copy(content.pick(files, group), *(content.number(size) for size in (4, 4, 2, 1, 1)))
        fits = 1 <= copy.pages and copy.here + copy.pages <= 16
        require(fits, f"{name}: a copy of {copy.pages} pages to page {copy.here}")
        require(covered < 1 << copy.here, f"{name}: its copies overlap or are not in order, at page {copy.here}")
        covered |= (1 << copy.pages) - 1 << copy.here
        copies.append(copy)
    require(covered == pages, f"{name}: copies of pages {covered:#x} in a piece of pages {pages:#x}")
    return copies


@functools.lru_cache(maxsize=8)
def copied_chunk(root, identity):
    """A chunk in full from which there are copies."""
    return read_full(root, identity)


def copied(root, copy, donors, name):
    """The bytes of a copy, from a chunk in full or from a run."""
    donor = name_of(copy.file)
    require(copy.file in donors, f"{name}: a copy from {donor}, which is not among the recipe's donors of this run")
    kind, identity = copy.file
    used["copy", kind] += 1
    if kind == GROUP:
        place, pages = (identity, copy.offset, copy.length), range(copy.there, copy.there + copy.pages)
        return b"".join(copied_page(root, place, page, name) for page in pages)
    require(copy.offset == copy.length == 0, f"{name}: a copy from a run of {donor}, which is a chunk in full")
    chunk, begin, end = copied_chunk(root, identity), copy.there * PAGE, (copy.there + copy.pages) * PAGE
    require(end <= len(chunk), f"{name}: a copy of bytes {begin} to {end} of {donor}, which has {len(chunk)}")
    return chunk[begin:end]


def copied_page(root, place, page, name):
    """A page of a run that has its bytes; the run is read as one of a chunk of 4 MiB."""
    run, _, pieces = read_run(root, *place)
    name = f"{name}: a copy of page {page} of the run {run}"
    found = [piece for piece in pieces if piece[0] == page // 16 and piece[2] >> page % 16 & 1]
    require(found, f"{name}, which does not have it")
    (_, kind, pages, stored), = found
    require(kind in (1, 2), f"{name}, where it is in a {'patch' if kind == PATCH else 'copy'}")
    plain = decode(kind, stored, PAGE * pages.bit_count(), name)
    at = PAGE * (pages & (1 << page % 16) - 1).bit_count()
    return plain[at : at + PAGE]


def read_chunk(root, identity, place, length):
    """A chunk's bytes: from its own file if that is there and can be read."""
    try:
        return read_full(root, identity, length)
    except (Damaged, OSError, struct.error, zstandard.ZstdError):
        if place is None:
            raise
    return read_made(root, identity, place, length)


def write_image(root, places, size, target):
    target.truncate(size)
    for number, found in enumerate(places):
        if found is not None:
            target.seek(number * CHUNK)
            target.write(read_chunk(root, *found, min(CHUNK, size - number * CHUNK)))


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
    except (Damaged, OSError, ValueError, KeyError, struct.error, zstandard.ZstdError) as error:
        sys.exit(f"error: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
