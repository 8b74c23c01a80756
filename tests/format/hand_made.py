#!/usr/bin/env python3
"""A small store made by hand, byte by byte after docs/format.md, with copies of every sort; then many of it that are
wrong in one place, each of which read_store.py must refuse for the right reason.

    tests/format/hand_made.py        with the modules blake3 and zstandard; tests/format/check runs it as well

Four revisions of one chunk each, which are all made by recipes:

    T1   base Z, run R1 in group 1, with copies from chunk S
    T2   no base, run R2 in group 2, with copies from S, from R1 and from R3
    T3   base Z, run R3 in group 2
    T4   base Z, run R1 without its copies, and run R4 in group 3, with a copy from R1
"""

import hashlib
import os
import re
import struct
import sys
import tempfile

import read_store
import zstandard
from chunk_values import ROOT, combine, packed, tree
from read_store import CHUNK_FILE, COPY, FRAME, GROUP, PAGE, PATCH, blake, path_of

RAW, ZSTD = 1, 2
OWN = NO_BASE = 0xFFFFFFFF
# Two frames and one of two pages, of which the second has 904 bytes.
LENGTH = 2 * FRAME + PAGE + 904
JOB = "made"
CONFIG = "source:\n  type: file\n  filename: /nowhere\nschedule:\n  daily:\n    interval: 1d\n    keep: 7\n"
STORE = """birth: b1795913822976384997
created: '2026-11-29 00:57:02.977221+00:00'
file-system: ef53-e9a04d4b7b422a5d
format: 1
id: 35de502a259b86ad86a023a970b74fb1
"""
MANIFEST = """backend_type: framed
image_size: {size}
map_seal: {seal}
orig_tags: []
parent: null
server: ''
stats:
  bytes_written: {size}
  duration: 0.1
tags:
- manual:made
timestamp: 2026-11-29 00:57:03.003137+00:00
trust: trusted
uuid: {revision}
"""


def noise(name, length):
    return hashlib.shake_256(name.encode()).digest(length)


def rows(name, pages):
    """Pages that differ, each a few bytes again and again."""
    return b"".join(noise(f"{name} {page}", 32) * (PAGE // 32) for page in range(pages))


def pages_of(chunk, first, count=1):
    return chunk[first * PAGE : (first + count) * PAGE]


def with_pages(chunk, *changes):
    """The chunk with other bytes from these pages on."""
    chunk = bytearray(chunk)
    for page, content in changes:
        chunk[page * PAGE : page * PAGE + len(content)] = content
    return bytes(chunk)


class Chunk:
    """A chunk's bytes, the values of its frames, and its id."""

    def __init__(self, plain):
        self.plain = plain
        self.frames = [plain[at : at + FRAME] for at in range(0, len(plain), FRAME)]
        values = [tree(frame, number * FRAME // 1024, 0) for number, frame in enumerate(self.frames)]
        self.values, self.id = [packed(value) for value in values], packed(combine(values, ROOT))
        assert self.id == blake(plain)


def squeezed(plain, prefix=None):
    base = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    return zstandard.ZstdCompressor(3, dict_data=base).compress(plain)


def chunk_file(chunk):
    table, stored = b"", b""
    for frame, value in zip(chunk.frames, chunk.values):
        kind, content = min((RAW, frame), (ZSTD, squeezed(frame)), key=lambda form: len(form[1]))
        kind, content = (kind, content) if any(frame) else (0, b"")
        table += struct.pack("<I32s", kind << 24 | len(content), value)
        stored += content
    head = struct.pack("<8sHBBIIIQ", b"BACKYCHK", 1, 16, 0, len(chunk.plain), len(chunk.frames), len(stored), 0)
    content = head + table + stored
    return content + blake(content)


def copy(file, there, here, pages, run=(0, 0)):
    """A copy from a run, or from a chunk in full, which has no run."""
    return {"file": file, "offset": run[0], "length": run[1], "there": there, "here": here, "pages": pages}


def piece(frame, kind, pages, stored):
    """A piece with its stored bytes or its copies."""
    return {"frame": frame, "kind": kind, "pages": sum(1 << page for page in pages), "stored": stored}


def run_bytes(pieces):
    heads, stored = b"", b""
    for part in pieces:
        content = part["stored"]
        if not isinstance(content, bytes):
            content = b"".join(struct.pack("<IIIHBB", *copied.values()) for copied in content)
        heads += struct.pack("<BBHI", part["frame"], part["kind"], part["pages"], len(content))
        stored += content
    return struct.pack("<HH", len(pieces), 0) + blake(heads + stored) + heads + stored


def recipe_bytes(recipe, chunk):
    """`runs` are file, place and frames, `donors` file, run and length."""
    count = recipe.get("donor_count", len(recipe["donors"]))
    content = struct.pack("<HHIII", 0, len(recipe["runs"]), len(chunk.plain), recipe["base"], count)
    for file, (offset, length), frames in recipe["runs"]:
        content += struct.pack("<IIIQ", file, offset, length, sum(1 << frame for frame in frames))
    return content + b"".join(struct.pack("<III", *donor) for donor in recipe["donors"]) + b"".join(chunk.values)


def file_list(files):
    return b"".join(struct.pack("<B32s", *file) for file in files)


class Group:
    """A group that is written: a record after the other, and then the lists and the trailer."""

    def __init__(self, number, files):
        self.file, self.files, self.recipes = (GROUP, noise(f"group {number}", 32)), files, []
        self.content = struct.pack("<8sH6x32s16x", b"BACKYGRP", 1, self.file[1])

    def add(self, content):
        """Offset and length of a record."""
        self.content += content
        return len(self.content) - len(content), len(content)

    def add_recipe(self, recipe, chunk):
        place = self.add(recipe_bytes(recipe, chunk))
        self.recipes.append(struct.pack("<32sII", chunk.id, *place))
        return place

    def whole(self):
        lists = file_list(self.files) + b"".join(self.recipes)
        counts = len(self.content), len(self.files), len(self.recipes)
        end = struct.pack("<8sQIIH6x32s", b"BACKYEND", *counts, 1, blake(lists))
        content = self.content + lists + end + blake(end, self.file[1])
        return content + blake(content)


def map_bytes(chunk, place, needed):
    """The map of an image of one chunk: `needed` are the files that its recipe needs, with the bytes of runs there."""
    files = [file for file, _ in needed]
    page = struct.pack("<I", len(files)) + file_list(files) + struct.pack("<BII", len(files), *place)
    page += b"".join(struct.pack("<II", number, length) for number, (_, length) in enumerate(needed))
    head = struct.pack("<8sHBBIQQ", b"BACKYMAP", 1, 22, 1, 2048, len(chunk.plain), 1)
    table, places_table = blake(chunk.id), struct.pack("<32sQ", blake(page), len(page))
    seal = blake(head, table, places_table)
    return head + seal + table + chunk.id + places_table + page, seal


class Store:
    """The bytes of all files. `changes` has functions that change a part before what depends on it is made: in place,
    or by what they return."""

    S = Chunk(noise("S", FRAME) + rows("S", 16) + noise("S end", LENGTH - 2 * FRAME))
    Z = Chunk(bytes(FRAME) + rows("Z", 16) + noise("Z end", LENGTH - 2 * FRAME))
    SHORT = noise("the short page", 904)
    PATCHED = bytearray(pages_of(Z.plain, 18))
    PATCHED[100:110] = b"a patch is"
    TARGETS = {
        "T1": Chunk(with_pages(Z.plain, (0, rows("T1", 2)), (3, pages_of(S.plain, 14, 3)), (9, pages_of(S.plain, 20)),
                               (18, PATCHED), (33, SHORT))),
        "T2": Chunk(with_pages(bytes(LENGTH), (0, noise("T2", PAGE)), (1, rows("T1", 2)), (16, rows("T3", 2)),
                               (18, pages_of(S.plain, 15, 4)))),
        "T3": Chunk(with_pages(Z.plain, (20, rows("T3", 2)))),
        "T4": Chunk(with_pages(Z.plain, (7, rows("T1", 2)[PAGE:]), (18, PATCHED), (33, SHORT))),
    }

    def __init__(self, changes):
        self.changes, self.files = changes, {"backy.store": STORE.encode(), f"{JOB}/config": CONFIG.encode()}
        s, z = [(CHUNK_FILE, chunk.id) for chunk in (self.S, self.Z)]
        for name, file in (("S", s), ("Z", z)):
            self.files[path_of(".", file)] = self.part(name, chunk_file(getattr(self, name)))
        one = Group(1, [s, z])
        two, three = Group(2, [one.file, s, z]), Group(3, [z, one.file])
        # Where the runs lie, and where the recipes do.
        self.at = at = {}
        at["R1"] = r1 = one.add(run_bytes(self.part("R1", [
            piece(0, ZSTD, (0, 1), squeezed(rows("T1", 2))),
            piece(0, COPY, (3, 4, 5, 9), [copy(0, 14, 3, 3), copy(0, 20, 9, 1)]),
            piece(1, PATCH, (2,), squeezed(bytes(self.PATCHED), self.Z.frames[1])),
            piece(2, RAW, (1,), self.SHORT)])))
        self.add("T1", one, {"base": 1, "runs": [(OWN, r1, (0, 1, 2))], "donors": [[0, 0, 0]]},
                 [[one.file, r1[1]], [z, 0], [s, 0]])
        at["R3"] = r3 = two.add(run_bytes([piece(1, RAW, (4, 5), rows("T3", 2))]))
        self.add("T3", two, {"base": 2, "runs": [(OWN, r3, (1,))], "donors": []}, [[two.file, r3[1]], [z, 0]])
        at["R2"] = r2 = two.add(run_bytes(self.part("R2", [
            piece(0, RAW, (0,), noise("T2", PAGE)), piece(0, COPY, (1, 2), [copy(0, 0, 1, 2, r1)]),
            piece(1, COPY, range(6), [copy(OWN, 20, 0, 2, r3), copy(1, 15, 2, 4)])])))
        self.add("T2", two, {"base": NO_BASE, "runs": [(OWN, r2, (0, 1))],
                             "donors": [[0, 0, r1[1]], [OWN, 0, r3[1]], [1, 0, 0]]},
                 [[two.file, r2[1] + r3[1]], [one.file, r1[1]], [s, 0]])
        at["R4"] = r4 = three.add(run_bytes(self.part("R4", [piece(0, COPY, (7,), [copy(1, 1, 7, 1, r1)])])))
        self.add("T4", three, {"base": 0, "runs": [(1, r1, (1, 2)), (OWN, r4, (0,))], "donors": [[1, 1, r1[1]]]},
                 [[three.file, r4[1]], [z, 0], [one.file, 2 * r1[1]]])
        for group in (one, two, three):
            self.files[path_of(".", group.file)] = group.whole()

    def part(self, name, content):
        changed = self.changes[name](content) if name in self.changes else None
        return content if changed is None else changed

    def add(self, name, group, recipe, needed):
        """A recipe, and the revision of the image that it makes."""
        chunk = self.TARGETS[name]
        self.at[name] = group.add_recipe(self.part(name, recipe), chunk)
        needed = self.part(f"place of {name}", needed)
        needed = needed[:1] + sorted(needed[1:], key=lambda entry: entry[0][1])
        content, seal = map_bytes(chunk, self.at[name], needed)
        manifest = MANIFEST.format(size=len(chunk.plain), seal=seal.hex(), revision=name).encode()
        self.files[f"{JOB}/{name}.map"] = content
        self.files[f"{JOB}/{name}.rev"] = manifest + f"seal: {blake(manifest).hex()}\n".encode()

    def write(self, root):
        for name, content in self.files.items():
            path = os.path.join(root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as file:
                file.write(content)


def flip(at, bits=1):
    """Flips bits of a byte of a file, which is counted from the end if it is negative."""
    def change(content):
        content = bytearray(content)
        content[at] ^= bits
        return bytes(content)
    return change


def in_copy(part, number, **values):
    """Other values in a copy of a piece."""
    return lambda pieces: pieces[part]["stored"][number].update(values)


def in_piece(part, **values):
    return lambda pieces: pieces[part].update(values)


def only_copy(**values):
    """R2's copies from R1 become one of one page."""
    return lambda pieces: pieces[1].update(pages=2, stored=[{**pieces[1]["stored"][0], "pages": 1, **values}])


def item(value, *keys):
    """Another value in nested lists and mappings."""
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value
    return change


def more(key, value):
    return lambda recipe: recipe[key].append(value)


def cases(at):
    """What is wrong, in which revision, the error, and the changes; `at` says where runs lie."""
    (r1_at, r1), (r2_at, r2), (_, r3) = at["R1"], at["R2"], at["R3"]
    s, z = (CHUNK_FILE, Store.S.id), (CHUNK_FILE, Store.Z.id)
    named = re.escape(s[1].hex())
    return [
        # Copies: what they copy.
        ("a copy past the end of a chunk", "T1", "a copy of bytes .*, which has 136072",
         {"R1": in_copy(1, 0, there=32)}),
        ("a copy of the highest page", "T1", "a copy of bytes .*, which has 136072",
         {"R1": in_copy(1, 0, there=65535)}),
        ("a copy of a short page of a chunk", "T1", "to 139264 of .*, which has 136072",
         {"R1": in_copy(1, 1, there=33)}),
        ("a copy of a page that a run does not have", "T2", "page 2 of the run .*, which does not have it",
         {"R2": in_copy(1, 0, there=1)}),
        ("a copy of the highest page of a run", "T2", "page 65535 of the run .*, which does not have it",
         {"R2": only_copy(there=65535)}),
        ("a copy of a short page of a run", "T2", "page 33 of the run .*: kind 1 with 904 stored bytes of 4096",
         {"R2": only_copy(there=33)}),
        ("a copy of a page in a patch", "T2", "page 18 of the run .*, where it is in a patch",
         {"R2": only_copy(there=18)}),
        ("a copy of a page in a copy", "T2", "page 3 of the run .*, where it is in a copy",
         {"R2": in_copy(1, 0, there=3)}),
        ("a copy of itself", "T2", f"page 1 of the run .* at {r2_at}, where it is in a copy",
         {"R2": in_copy(1, 0, file=OWN, offset=r2_at, length=r2, there=1)}),
        ("a run past the end of its group", "T2", "at 4294967295: .* lie outside",
         {"R2": in_copy(1, 0, offset=0xFFFFFFFF)}),
        ("a run that is too long", "T2", "a run of 4195365 bytes", {"R2": in_copy(1, 0, length=4_195_365)}),
        ("no run at the offset", "T2", "a run with|wrong hash of the run", {"R2": in_copy(1, 0, offset=r1_at + 1)}),
        ("a run in a header", "T2", "at 0: .* lie outside", {"R2": in_copy(1, 0, offset=0)}),
        ("a shorter run", "T2", "wrong hash of the run", {"R2": in_copy(1, 0, length=r1 - 1)}),
        ("a run in a chunk in full", "T1", "a copy from a run of .*, which is a chunk in full",
         {"R1": in_copy(1, 0, offset=64)}),
        ("a copy from no donor", "T1", "a copy from .*, which is not among the recipe's donors",
         {"R1": in_copy(1, 0, file=1)}),
        ("a copy from a file that is not in the list", "T1", "file 7 of 2", {"R1": in_copy(1, 0, file=7)}),
        ("a copy of other pages", "T1", "content does not match the id", {"R1": in_copy(1, 0, there=13)}),
        # Copies: where they put it.
        ("a copy of no pages", "T1", "a copy of 0 pages to page 3", {"R1": in_copy(1, 0, pages=0)}),
        ("a copy of too many pages", "T1", "a copy of 17 pages to page 0", {"R1": in_copy(1, 0, pages=17, here=0)}),
        ("a copy past the end of the frame", "T1", "a copy of 3 pages to page 14", {"R1": in_copy(1, 0, here=14)}),
        ("a copy to no page", "T1", "a copy of 3 pages to page 255", {"R1": in_copy(1, 0, here=255)}),
        ("a copy to a short page", "T1", "a copy to a page that is shorter than 4096 bytes",
         {"R1": in_piece(3, kind=COPY, stored=[copy(0, 1, 1, 1)])}),
        ("a copy to a page behind the end", "T1", "frame 2: pages 0x4",
         {"R1": in_piece(3, kind=COPY, pages=4, stored=[copy(0, 1, 2, 1)])}),
        ("copies that overlap", "T1", "its copies overlap or are not in order, at page 5",
         {"R1": in_copy(1, 1, here=5)}),
        ("copies in another order", "T1", "its copies overlap or are not in order, at page 3",
         {"R1": lambda pieces: pieces[1]["stored"].reverse()}),
        ("copies that lack a page", "T1", "copies of pages 0x218 in a piece of pages 0x238",
         {"R1": in_copy(1, 0, pages=2)}),
        ("copies of a page too many", "T1", "copies of pages 0x638 in a piece of pages 0x238",
         {"R1": in_copy(1, 1, pages=2)}),
        ("half a copy", "T1", "24 bytes of copies", {"R1": in_piece(1, stored=bytes(24))}),
        ("no copies", "T1", "0 bytes of copies", {"R1": in_piece(1, stored=[])}),
        ("too many copies", "T1", "272 bytes of copies", {"R1": in_piece(1, stored=bytes(272))}),
        # Pieces.
        ("pieces that overlap", "T1", "the pieces of frame 0 overlap", {"R1": in_piece(0, pages=9)}),
        ("a copy before what is none", "T1", "the pieces of frame 0 are not in order",
         {"R1": lambda pieces: [pieces[1], pieces[0], *pieces[2:]]}),
        ("two copies of a frame", "T1", "the pieces of frame 0 are not in order",
         {"R1": lambda pieces: [pieces[1], {**pieces[1], "pages": 1}, *pieces[2:]]}),
        ("two pieces of a frame that are none", "T1", "the pieces of frame 0 are not in order",
         {"R1": in_piece(1, kind=RAW)}),
        ("three pieces of a frame", "T1", "the pieces of frame 0 are not in order",
         {"R1": lambda pieces: [*pieces[:2], {**pieces[1], "pages": 1}, *pieces[2:]]}),
        ("frames in another order", "T1", "the pieces of frame 1 are not in order",
         {"R1": lambda pieces: [*pieces[:2], pieces[3], pieces[2]]}),
        ("an unknown kind of piece", "T1", "frame 0: kind 6", {"R1": in_piece(1, kind=6)}),
        ("the kind that is not used", "T1", "frame 0: kind 3", {"R1": in_piece(0, kind=3)}),
        ("no pieces", "T1", "a run with 0 pieces", {"R1": lambda pieces: pieces.clear()}),
        ("a piece of no pages", "T1", "frame 0: pages 0x0", {"R1": in_piece(0, pages=0)}),
        # Donors.
        ("a huge number of donors", "T1", "2147483648 donors", {"T1": item(1 << 31, "donor_count")}),
        ("a donor too many for any recipe", "T1", "257 donors", {"T1": item(257, "donor_count")}),
        ("more donors than there are", "T1", "cut off|a donor|the donor|file", {"T1": item(2, "donor_count")}),
        ("fewer donors than there are", "T1", "bytes behind its end", {"T1": item(0, "donor_count")}),
        ("a donor of no run", "T1", "the donor .* of run 1: there are 1 runs", {"T1": item(1, "donors", 0, 1)}),
        ("donors in another order", "T4", "the donor .* of run 0: .* before is of run 1",
         {"T4": more("donors", [1, 0, r1])}),
        ("a donor twice", "T1", "the donor .* of run 0: is there twice", {"T1": more("donors", [0, 0, 0])}),
        ("runs in a chunk in full", "T1", "the donor .* of run 0: has 5 bytes of runs",
         {"T1": item(5, "donors", 0, 2)}),
        ("a group without runs", "T2", r"the donor .*\.group of run 0: has 0 bytes of runs",
         {"T2": item(0, "donors", 0, 2)}),
        ("a donor that is not in the list", "T1", "file 2 of 2", {"T1": item(2, "donors", 0, 0)}),
        ("a donor without a copy", "T1", "has copies from other files or runs", {"T1": more("donors", [1, 0, 0])}),
        ("a donor of another run", "T4", "not among the recipe's donors of this run|other files or runs",
         {"T4": item(0, "donors", 0, 1)}),
        ("no donor", "T1", "not among the recipe's donors of this run",
         {"T1": item([], "donors"), "place of T1": lambda needed: needed[:2]}),
        ("a donor with other runs", "T2", "has copies from other files or runs",
         {"T2": item(r1 + 1, "donors", 0, 2), "place of T2": item(r1 + 1, 1, 1)}),
        # The place in the map.
        ("a place that lacks a donor", "T2", f"refers to other files than the map says: {named}",
         {"place of T2": lambda needed: needed[:2]}),
        ("a place with a file too many", "T3", f"refers to other files than the map says: {named}",
         {"place of T3": lambda needed: needed + [[s, 0]]}),
        ("a place that names a file twice", "T3", "names a file twice",
         {"place of T3": lambda needed: needed + [[z, 0]]}),
        ("a place with other bytes of a group", "T2", f"needs {r1} bytes of .*, the map says {r1 + 1}",
         {"place of T2": item(r1 + 1, 1, 1)}),
        ("a place without the bytes of the own group's donor", "T2", f"needs {r2 + r3} bytes of .*, the map says {r2}",
         {"place of T2": item(r2, 0, 1)}),
        ("a place with runs only once", "T4", f"needs {2 * r1} bytes of .*, the map says {r1}",
         {"place of T4": item(r1, 2, 1)}),
        # Chunk files.
        ("a flipped hash at the end of a donor", "T1", f"{named}: wrong hash at the end", {"S": flip(-1)}),
        ("a flipped hash at the end of the base", "T3", "wrong hash at the end", {"Z": flip(-32, 0x80)}),
        ("a flipped frame value", "T1", f"{named}: wrong hash at the end", {"S": flip(32 + 36 + 10)}),
        ("a chunk without the hash at the end", "T1", f"{named}: cut off", {"S": lambda content: content[:-32]}),
        ("a byte behind the hash at the end", "T1", f"{named}: bytes behind its end",
         {"S": lambda content: content + b"\0"}),
        ("a frame that is a copy", "T1", f"{named}: frame 0: kind 5", {"S": flip(32 + 3, RAW ^ COPY)}),
        ("a donor that is a chunk of no bytes", "T1", f"{named}: a chunk of 0 bytes",
         {"S": lambda content: content[:12] + bytes(4) + content[16:]}),
    ]


def restored(root, revision):
    """What the reader makes of a revision: its bytes, or what is wrong."""
    target = f"{root}/target"
    try:
        read_store.restore(root, JOB, revision, target)
    except read_store.Damaged as error:
        return str(error)
    with open(target, "rb") as file:
        content = file.read()
    os.unlink(target)
    return content


def results(work):
    """Whether the reader does the right thing with each store, and what it did."""
    good = Store({})
    good.write(f"{work}/good")
    read_store.used.clear()
    for revision, chunk in Store.TARGETS.items():
        found = restored(f"{work}/good", revision)
        yield found == chunk.plain, f"hand-made {revision}: {found[:200]}"
    copies = [read_store.used["copy", kind] for kind in (CHUNK_FILE, GROUP)]
    yield copies == [3, 3], f"hand-made: {copies} copies"
    # A recipe needs no donor of a piece that is not part of its chunk.
    lacking = Store({})
    del lacking.files[path_of(".", (CHUNK_FILE, Store.S.id))]
    lacking.write(f"{work}/lacking")
    yield restored(f"{work}/lacking", "T4") == Store.TARGETS["T4"].plain, "hand-made T4 without S"
    for number, (what, revision, message, changes) in enumerate(cases(good.at)):
        Store(changes).write(f"{work}/{number}")
        found = restored(f"{work}/{number}", revision)
        yield isinstance(found, str) and bool(re.search(message, found)), f"{what}: {found[:200]}"


def main():
    with tempfile.TemporaryDirectory() as work:
        done = list(results(work))
    failed = [f"FAILED: {what}\n" for good, what in done if not good]
    sys.stdout.write("".join(failed) + f"{len(done) - len(failed)} passed, {len(failed)} failed\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
