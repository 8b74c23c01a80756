"""The command line of scripts/bench: options, the chosen cases one after the other, the report."""

import argparse
import os
import signal
import sys

from bench.cases import CASES, WITHOUT_IMAGE
from bench.cases.peers import TOOLS
from bench.measure import Errors, Failed
from bench.report import print_tables
from bench.setting import Bench
from bench.tools import ROOT, prepare_tools


def parse(description):
    names = "\n".join(f"  {name:10} {case.__doc__.splitlines()[0]}" for name, case in CASES.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=description,
        epilog=f"cases:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("case", nargs="*", help="default: all")
    parser.add_argument("--gib", type=float, help="GiB of files in the image (default: 2.2; quick: 0.2)")
    parser.add_argument("--repeat", type=int, help="runs of each case (default: 3; quick: 1)")
    parser.add_argument("--days", type=int, default=365, help="days of the cases `year` and `mixed` (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument(
        "--backy", metavar="BINARY", help="measure this binary, with the examples beside it, instead of building one"
    )
    parser.add_argument("--work", metavar="DIR", default=f"{ROOT}/target/bench", help="where the files go")
    parser.add_argument("--original", metavar="BINARY", help="the original's program, for the case `original` (PyPI: backy 2.5)")
    parser.add_argument("--cold", action="store_true", help="empty the page cache before every measurement (root)")
    parser.add_argument("--keep", action="store_true", help="keep image and stores for the next run")
    peers = parser.add_argument_group("for the case `peers`")
    peers.add_argument("--peers", metavar="LIST", default=",".join(TOOLS), help="programs to compare with (default: %(default)s)")
    peers.add_argument("--install", action="store_true", help="install those that are missing: PyPI, Debian, crates.io")
    peers.add_argument(
        "--render", metavar="JSON", help="measure nothing, show the numbers of an earlier run (WORK/results/peers.json)"
    )
    parser.add_argument("--verbose", action="store_true", help="show what the commands say")
    options = parser.parse_args()
    for name in options.case:
        if name not in CASES:
            parser.error(f"there is no case {name}")
    options.peers = [name for name in options.peers.split(",") if name]
    for name in options.peers:
        if name not in TOOLS:
            parser.error(f"there is no peer {name}")
    options.case = options.case or list(CASES)
    options.gib = options.gib or (0.2 if options.quick else 2.2)
    options.repeat = options.repeat or (1 if options.quick else 3)
    options.work = os.path.abspath(options.work)
    return options


def main(description):
    options = parse(description)
    if options.verbose:
        Errors.show()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped"))
    prepare_tools(options)
    os.makedirs(options.work, exist_ok=True)
    bench = Bench(options)
    try:
        failures = run_cases(bench)
        print_tables(bench)
    finally:
        bench.end_leftovers()
        if not options.keep:
            bench.remove_files()
    if failures:
        sys.exit("\n".join(failures))


def run_cases(bench):
    """Runs the chosen cases; returns what failed."""
    failures = []
    if not WITHOUT_IMAGE.issuperset(bench.options.case):
        bench.make_image()
    for name in bench.options.case:
        try:
            CASES[name](bench)
        except (Failed, OSError) as failure:
            failures.append(f"error: case {name}: {failure}")
            bench.end_leftovers()
    return failures
