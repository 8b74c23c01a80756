"""The programs that are compared: how each makes a store, backs up, restores and mounts."""

from bench.peers.programs.backy import Backy, BackyVerifying
from bench.peers.programs.borg import Borg, BorgBuzhash
from bench.peers.programs.casync import Casync
from bench.peers.programs.restic import Restic
from bench.peers.programs.rustic import Rustic

OURS = (Backy, BackyVerifying)
PEERS = (Borg, BorgBuzhash, Restic, Casync, Rustic)
