"""What can be measured: each case is a function of the bench, and the first line of its docstring stands in the help."""

from bench.cases import backup, ceph, inside, longrun, many, original, peers, purge, reading, service

# In the order in which they run.
CASES = {
    "first": backup.first,
    "noise": backup.noise,
    "unchanged": backup.unchanged,
    "restore": backup.restore,
    "dd": reading.dd,
    "original": original.original,
    "random": reading.random_reads,
    "files": inside.files,
    "memory": reading.memory,
    "listing": many.listing,
    "revisions": many.revisions,
    "purge": purge.purge,
    "levels": backup.levels,
    "year": longrun.year,
    "mixed": longrun.mixed,
    "two-installs": longrun.two_installs,
    "schedule": service.year,
    "service": service.service,
    "ceph": ceph.ceph,
    "peers": peers.peers,
}

# These make what they need themselves.
WITHOUT_IMAGE = {"listing", "revisions", "purge", "year", "mixed", "two-installs", "schedule", "service", "peers"}
