"""What happens to a machine's disk: a day of ordinary change through its file system, and scattered writes past it."""

import contextlib
import itertools
import os
import random
import sqlite3

from bench.files import FRAME, GIB, MIB, extents
from bench.peers.machines import append_log, mounted, note, row, write_noise

BLOCK = 4096


def pass_day(image, gib, packages, hostname, seed):
    """Changes the image as a day of service does; returns what was done, in words."""
    draw = random.Random(seed)
    with mounted(image) as root:
        logs = grow_logs(f"{root}/var/log", gib, hostname, draw)
        rows = update_database(f"{root}/srv/db/main.sqlite", gib, draw)
        replaced = upgrade_packages(root, packages, gib, draw)
        fresh = replace_media(f"{root}/srv/media", gib, draw)
    return f"{logs}; {rows}; {replaced}; {fresh}"


def grow_logs(folder, gib, hostname, draw):
    """Appends to the logs, one of which is rotated before."""
    os.rename(f"{folder}/mail.log", f"{folder}/mail.log.1")
    size = int(gib * 0.0006 * GIB)
    for name in ("syslog", "mail.log", "access.log", "app.log"):
        append_log(f"{folder}/{name}", size, hostname, draw)
    return f"{4 * size / 1e6:.1f} MB appended to logs, one of them rotated"


def update_database(path, gib, draw):
    """Updates rows in place, all over the file, and adds some."""
    updates, inserts = max(200, int(1200 * gib)), max(50, int(400 * gib))
    with contextlib.closing(sqlite3.connect(path)) as base:
        (count,) = base.execute("select max(id) + 1 from sale").fetchone()
        for id in draw.sample(range(count), updates):
            base.execute("update sale set amount = ?, note = ? where id = ?", (draw.random() * 1000, note(draw), id))
        base.executemany("insert into sale values (?, ?, ?, ?, ?)", (row(count + number, draw) for number in range(inserts)))
        base.commit()
    return f"{updates:,} rows of the database updated and {inserts:,} added"


def upgrade_packages(root, packages, gib, draw):
    """Replaces the files of some packages by later versions, each written anew and renamed as a package manager does."""
    left, files, replaced = int(gib * 0.012 * GIB), 0, 0
    for paths in draw.sample(packages, len(packages)):
        if sum(map(os.path.getsize, paths)) > left // 2:
            continue
        replaced += 1
        for path in paths:
            with open(root + path, "rb") as file:
                old = file.read()
            with open(f"{root}{path}.new", "wb") as file:
                file.write(later_version(old, draw))
            os.rename(f"{root}{path}.new", root + path)
            left -= len(old)
            files += 1
        if left < MIB:
            break
    return f"{files:,} files of {replaced} packages replaced by later versions"


def later_version(old, draw):
    """Most of the old bytes, some pieces moved and others replaced, all of it shifted a little."""
    pieces = [old[at : at + 8192] for at in range(0, len(old), 8192)]
    for number in range(len(pieces)):
        if draw.random() < 0.15:
            pieces[number] = draw.choice(pieces)
        if draw.random() < 0.05:
            pieces[number] = draw.randbytes(512) + pieces[number]
    return b"".join(pieces)


def replace_media(folder, gib, draw):
    size = int(gib * 0.005 * GIB)
    for number in range(2):
        write_noise(f"{folder}/new{number}.bin", size, draw)
    os.unlink(f"{folder}/0003.bin")
    return f"two new files of {size / 1e6:.1f} MB, one deleted"


def scatter(image, count, seed):
    """Overwrites so many blocks of the allocated parts with noise, past the file system."""
    draw = random.Random(seed)
    with open(image, "r+b") as file:
        for at in draw_blocks(image, count, draw):
            file.seek(at)
            file.write(draw.randbytes(BLOCK))


def draw_blocks(image, count, draw):
    """Draws places of so many different blocks of the allocated parts."""
    parts = [range(-(-first // BLOCK) * BLOCK, end - BLOCK + 1, BLOCK) for first, end in extents(image)]
    blocks = itertools.chain.from_iterable(parts)
    wanted = set(draw.sample(range(sum(map(len, parts))), count))
    places = [at for number, at in enumerate(blocks) if number in wanted]
    draw.shuffle(places)
    return places


def changed_bytes(old, new, unit=BLOCK):
    """How much differs between two images of one size, in whole blocks."""
    changed = 0
    with open(old, "rb") as first, open(new, "rb") as second:
        for begin, end in extents(new):
            for at in range(begin // FRAME * FRAME, end, FRAME):
                first.seek(at)
                second.seek(at)
                ours, theirs = first.read(FRAME), second.read(FRAME)
                if ours != theirs:
                    changed += sum(unit for at in range(0, FRAME, unit) if ours[at : at + unit] != theirs[at : at + unit])
    return changed
