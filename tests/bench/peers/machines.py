"""Disk images of machines that were made from one template: GPT, ext4, Debian's files; a database, logs, incompressible files.

The same seed and the same files of /usr give the same machine, but for the times and places that the kernel's file system chooses.
"""

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import uuid

from bench.files import GIB, MIB
from bench.measure import Failed, run

# Where the partition begins. A loop device with this offset needs no support of partitions.
START = MIB
SECTOR = 512
WORDS = (
    "order invoice paid open customer shipped returned note call mail queue retry error timeout accepted rejected session".split()
)


def make_template(image, gib, packages, seed):
    """Makes a disk image with the packages' files in a file system of about three times so many GiB."""
    size = int(gib * 3.2 * GIB) // MIB * MIB
    draw = random.Random(seed)
    with open(image, "wb") as file:
        file.truncate(size)
    table = (
        f"label: gpt\nlabel-id: {identity(draw)}\n"
        f"start={START // SECTOR}, size={(size - 2 * START) // SECTOR}, type=linux, uuid={identity(draw)}, name=root\n"
    )
    subprocess.run(["sfdisk", "--quiet", image], input=table, text=True, check=True, stdout=subprocess.DEVNULL)
    extended = f"offset={START},lazy_itable_init=0,lazy_journal_init=0,hash_seed={identity(draw)}"
    run("mkfs.ext4", "-q", "-F", "-U", identity(draw), "-L", "root", "-E", extended, image, f"{(size - 2 * START) // 1024}k")
    with mounted(image) as root:
        draw.shuffle(packages)
        for package in packages:
            install_package(root, package)


def settle(image, gib, hostname, seed):
    """Makes a machine of a copy of the template: its name and keys, its database, logs and files."""
    draw = random.Random(seed)
    with mounted(image) as root:
        write_identity(root, hostname, draw)
        write_database(f"{root}/srv/db/main.sqlite", int(gib * 0.05 * GIB), draw)
        for name in ("syslog", "mail.log", "access.log", "app.log"):
            append_log(f"{root}/var/log/{name}", int(gib * 0.01 * GIB), hostname, draw)
        for number in range(12):
            write_noise(f"{root}/srv/media/{number:04}.bin", int(gib * 0.01 * GIB), draw)


@contextlib.contextmanager
def mounted(image):
    """The root of the image's file system, mounted through a loop device."""
    root = f"{image}.mnt"
    os.makedirs(root, exist_ok=True)
    size = os.path.getsize(image) - 2 * START
    try:
        run("mount", "-o", f"loop,offset={START},sizelimit={size}", image, root)
    except Failed as failure:
        raise Failed(failure.status, "cannot mount a partition of an image: this case needs root and loop devices") from failure
    try:
        yield root
    finally:
        run("umount", root)
        os.rmdir(root)


def identity(draw):
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))


def choose_packages(source, wanted, seed):
    """Lists of files that lie together, as those of a package do, until they have so many bytes."""
    groups = {}
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if f"{folder}/{name}" != f"{source}/local")
        key = "/".join(folder.split("/")[:5])
        for name in sorted(names):
            path = f"{folder}/{name}"
            if os.path.isfile(path) and not os.path.islink(path):
                groups.setdefault(key, []).append(path)
    chosen, left = [], wanted
    for key in random.Random(seed).sample(sorted(groups), len(groups)):
        paths = []
        for path in groups[key]:
            size = os.path.getsize(path)
            if size <= left:
                left -= size
                paths.append(path)
        if paths:
            chosen.append(paths)
    return chosen


def install_package(root, paths):
    for path in paths:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        shutil.copy2(path, root + path)


def write_identity(root, hostname, draw):
    """What tells two machines apart."""
    for path, text in (
        ("etc/hostname", f"{hostname}\n"),
        ("etc/hosts", f"127.0.0.1 localhost\n10.0.0.{draw.randrange(2, 250)} {hostname}.example.org {hostname}\n"),
        ("etc/machine-id", f"{draw.getrandbits(128):032x}\n"),
        ("etc/ssh/ssh_host_key", f"{draw.getrandbits(2048):x}\n"),
    ):
        os.makedirs(os.path.dirname(f"{root}/{path}"), exist_ok=True)
        with open(f"{root}/{path}", "w") as file:
            file.write(text)


def write_database(path, wanted, draw):
    """A database of rows that compress about as those of a shop do."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.executescript("pragma page_size = 4096; pragma synchronous = off; pragma journal_mode = memory;")
        base.execute("create table sale (id integer primary key, customer text, amount real, note text, token blob)")
        # A row takes about 330 bytes with its place in the index.
        base.executemany("insert into sale values (?, ?, ?, ?, ?)", (row(number, draw) for number in range(wanted // 330)))
        base.execute("create index sale_customer on sale (customer)")
        base.commit()


def row(number, draw):
    customer = f"{draw.choice(WORDS)}-{draw.randrange(100_000):05}@example.org"
    return number, customer, draw.random() * 1000, note(draw), draw.randbytes(48)


def note(draw):
    return " ".join(draw.choices(WORDS, k=draw.randrange(16, 32)))


def append_log(path, wanted, hostname, draw):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    second = draw.randrange(86400)
    with open(path, "a") as file:
        end = file.tell() + wanted
        while file.tell() < end:
            lines = []
            for _ in range(2000):
                second += draw.randrange(3)
                clock = f"{second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}"
                word = draw.choice(WORDS)
                origin = f"10.0.{draw.randrange(256)}.{draw.randrange(256)}"
                process = f"{word}d[{draw.randrange(40_000)}]"
                lines.append(f"Mar 14 {clock} {hostname} {process}: {word} {draw.getrandbits(48):012x} from {origin}\n")
            file.writelines(lines)


def write_noise(path, size, draw):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        while size > 0:
            file.write(draw.randbytes(min(MIB, size)))
            size -= MIB
