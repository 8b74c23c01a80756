"""backy against other backup programs; what it consists of is in tests/bench/peers."""

import json
import os
import shutil

from bench.files import remove
from bench.measure import Failed, run
from bench.peers.dataset import Dataset
from bench.peers.install import find, prepare
from bench.peers.plot import svg
from bench.peers.programs import OURS, PEERS
from bench.peers.rounds import Rounds
from bench.peers.tables import markdown
from bench.report import hardware, version


def peers(bench):
    """other backup programs on a day of a machine's disk: backups, store growth, restores, mounts (root)"""
    if bench.options.render:
        with open(bench.options.render) as file:
            document = json.load(file)
    else:
        document = measure(bench)
        write(bench, "peers.json", json.dumps(document, indent=1))
    bench.texts.append(markdown(document))
    write(bench, "peers.svg", svg(document))
    if document["problems"]:
        raise Failed(1, "; ".join(f"{name}, {problem}" for name, problem in document["problems"].items()))


def measure(bench):
    """Runs all rounds; returns the document that tells everything."""
    options, place = bench.options, f"{bench.work}/peers"
    if os.geteuid() != 0:
        raise Failed(1, "changing files inside a disk image needs root and loop devices")
    missing = prepare([tool for tool in TOOLS if tool in options.peers], options.install)
    dataset = Dataset(f"{place}/images", options.gib)
    programs = []
    for kind in [*OURS, *(kind for kind in PEERS if kind.tool in options.peers and kind.tool not in missing)]:
        path = bench.backy if kind.tool == "backy" else find(kind.tool)
        programs.append(kind(path, f"{place}/{kind.name.replace(', ', '-')}", f"{place}/sources"))
    about = {program.name: {"version": program.version(), "settings": program.settings} for program in programs}
    rounds = Rounds(place, options.cold, dataset, programs)
    for number in range(options.repeat):
        rounds.one_round(number)
    for program in programs:
        shutil.rmtree(program.place)
    remove(rounds.packed)
    return {
        "machine": f"{hardware(bench.work)}; {version('b3sum', '--version')}, {version('zstd', '--version')}",
        "floor": run("true").peak, "rounds": options.repeat, "cache": "cold" if options.cold else "warm", "dataset": dataset.about, "programs": about,
        "missing": missing, "problems": rounds.problems, "checked": rounds.checked, "samples": rounds.samples,
    }  # fmt: skip


TOOLS = sorted({kind.tool for kind in PEERS})


def write(bench, name, text):
    """Keeps a result: this directory stays when the bench removes its files."""
    os.makedirs(bench.results, exist_ok=True)
    with open(f"{bench.results}/{name}", "w") as file:
        file.write(text)
