"""What scripts/bench measures with: costs of processes, the image, the cases, and the tables of docs/performance.md.

Data flows one way: `options` says what is asked for, `cases` measure with the means of `measure`, `files`, `mounts` and `setting`,
and `report` turns what they found into tables.
"""
