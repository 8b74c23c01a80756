"""The bench against other backup programs.

`machines` and `changes` make disk images, `dataset` keeps them; `programs` knows how each program is called, `install` gets them;
`rounds` measures and yields one plain document, which is kept as JSON; `tables`, `aims` and `plot` are pure functions of it.
"""
