"""Finds or installs what the bench runs: backy with its examples, the references, Debian packages."""

import os
import shutil
import subprocess

from bench.measure import say

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))


def prepare_tools(options):
    """Builds backy and finds the references, installing what is missing."""
    os.environ["PATH"] = f"{ROOT}/target/tools/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
    if options.backy is None:
        build = ["cargo", "build", "--release", "--locked"]
        subprocess.run(build, cwd=ROOT, check=True)
        subprocess.run([*build, "-p", "backy-fuse", "-p", "backy-sched", "--examples"], cwd=ROOT, check=True)
        options.backy = f"{os.environ.get('CARGO_TARGET_DIR', f'{ROOT}/target')}/release/backy"
    options.backy = os.path.realpath(options.backy)
    if shutil.which("b3sum") is None:
        install_crate("b3sum")
    install_packages(zstd="zstd", **{"mkfs.ext4": "e2fsprogs"})


def install_crate(name, *more):
    say(f"installing {name} below target/tools")
    install = ["cargo", "install", "--locked", "--quiet", "--root", f"{ROOT}/target/tools", *more, name]
    subprocess.run(install, check=True)


def install_packages(**packages):
    """Installs the Debian packages of those tools that are not there."""
    missing = sorted({package for tool, package in packages.items() if not shutil.which(tool)})
    if missing:
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        subprocess.run([*sudo, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True)
