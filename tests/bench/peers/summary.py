"""Medians of what was measured, for all who show it: the table, the aims, the plot."""

import statistics

BACKUPS = ("first", "touched", "day", "scattered", "second")
OURS = "backy"
REFERENCE = "reference"


class Summary:
    """A view of one document of the bench."""

    def __init__(self, document):
        self.document = document
        self.samples = document["samples"]
        self.programs = [name for name in self.samples if name != REFERENCE and self.samples[name]]
        self.peers = [name for name in self.programs if not name.startswith(OURS)]

    def value(self, name, step, field):
        """The median over the rounds; None where it was not measured."""
        samples = self.samples.get(name, {}).get(step)
        return statistics.median(sample[field] for sample in samples) if samples else None

    def rate(self, name, step):
        """Bytes of a sequential read, or number of random reads, per second."""
        amount, wall = self.value(name, step, "bytes" if step == "sequential" else "reads"), self.value(name, step, "wall")
        return amount / wall if wall else None

    def best(self, of, better=min):
        """The peer with the best value, and the value; None twice if there is none."""
        values = {name: of(name) for name in self.peers}
        values = {name: value for name, value in values.items() if value is not None}
        name = better(values, key=values.get, default=None)
        return name, values.get(name)

    def peak(self, name):
        """The largest memory of any backup."""
        peaks = [sample["peak"] for step in BACKUPS for sample in self.samples[name].get(step, [])]
        return max(peaks, default=None)
