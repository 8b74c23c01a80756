"""Finds the peers, and installs them when asked to: Borg from PyPI, restic and casync from Debian, rustic from crates.io."""

import os
import shutil
import subprocess

from bench.measure import say, text_of
from bench.tools import ROOT, install_crate, install_packages

VENV = f"{ROOT}/target/peers-venv"
# What Borg and its mount are compiled with.
BORG_PACKAGES = "gcc libc6-dev libacl1-dev libfuse3-dev liblz4-dev libssl-dev libxxhash-dev libzstd-dev pkg-config python3-dev python3-venv".split()
RUSTIC = "0.11.3"


def find(tool):
    """The path of a peer's program, or None."""
    return shutil.which(tool, path=f"{VENV}/bin:{os.environ['PATH']}")


def prepare(tools, install):
    """Installs what is missing of the peers, if asked to, and says of each that cannot be had why: a dictionary."""
    install_packages(sfdisk="fdisk", fusermount="fuse3")
    missing = {}
    for tool in tools:
        if install and find(tool) is None:
            try:
                INSTALLERS[tool]()
            except subprocess.CalledProcessError as failure:
                missing[tool] = f"`{' '.join(map(str, failure.cmd[:4]))} ...` failed"
        if find(tool) is None:
            missing.setdefault(tool, "not installed; `--install` does it")
    return missing


def install_borg():
    missing = [package for package in BORG_PACKAGES if not is_installed(package)]
    install_packages(**{f"no tool, but {package}": package for package in missing})
    say("installing Borg below target/peers-venv")
    subprocess.run(["python3", "-m", "venv", VENV], check=True)
    subprocess.run(
        [f"{VENV}/bin/pip", "install", "--quiet", "--disable-pip-version-check", "borgbackup[pyfuse3]~=1.4.0"], check=True
    )


def is_installed(package):
    """Whether a Debian package is there."""
    try:
        return text_of("dpkg-query", "-W", "-f", "${db:Status-Status}", package) == "installed"
    except subprocess.CalledProcessError:
        return False


INSTALLERS = {
    "borg": install_borg,
    "restic": lambda: install_packages(restic="restic"),
    "casync": lambda: install_packages(casync="casync"),
    # Without what it brings for servers and terminals, but with its mount.
    "rustic": lambda: install_crate("rustic-rs", "--version", RUSTIC, "--no-default-features", "--features", "mount"),
}
