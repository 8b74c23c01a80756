"""Files for the cases: what is allocated of a sparse one, trees of many, and the state of the page cache."""

import itertools
import os
import shutil

from bench.measure import Failed

FRAME, MIB, GIB = 64 << 10, 1 << 20, 1 << 30


def extents(path):
    """The allocated ranges of a sparse file."""
    with open(path, "rb") as file:
        end, at = os.fstat(file.fileno()).st_size, 0
        while at < end:
            try:
                first = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            at = os.lseek(file.fileno(), first, os.SEEK_HOLE)
            yield first, at


def copy_allocated(image, target):
    """Writes the allocated bytes of a sparse file one after the other; returns their number."""
    with open(image, "rb") as source, open(target, "wb") as out:
        for first, end in extents(image):
            source.seek(first)
            while first < end:
                part = source.read(min(MIB, end - first))
                out.write(part)
                first += len(part)
    return os.path.getsize(target)


def copy_files(source, target, wanted):
    """Copies files until there are so many bytes; begins again if the source has less."""
    copied, turn = 0, 0
    while copied < wanted:
        turn, before = turn + 1, copied
        for folder, _, names in os.walk(source):
            place = f"{target}/{turn}{folder}"
            os.makedirs(place, exist_ok=True)
            for name in names:
                path = f"{folder}/{name}"
                if os.path.isfile(path) and not os.path.islink(path) and copied < wanted:
                    shutil.copyfile(path, f"{place}/{name}")
                    copied += os.path.getsize(path)
            if copied >= wanted:
                return
        if copied == before:
            raise Failed(1, f"{source} has no files")


def write_small(path, number):
    with open(path, "wb") as file:
        file.write(b"%d" % number * 1000)


def remove(path):
    if os.path.exists(path):
        os.unlink(path)


def files_below(top):
    """Yields all regular files below a directory, or the file itself; without a list, since memory that this process has once used
    shows as the peak of those that it starts."""
    paths = (f"{folder}/{name}" for folder, _, names in os.walk(top) for name in names)
    return (path for path in itertools.chain([top], paths) if os.path.isfile(path))


def cool():
    """Writes everything out and empties the page cache, as far as this user may."""
    os.sync()
    if os.geteuid() == 0:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3")


def warm(*tops):
    """Writes everything out and reads these files and directories into the page cache."""
    os.sync()
    buffer = bytearray(MIB)
    for path in (path for top in tops for path in files_below(top)):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
