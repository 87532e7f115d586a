"""Names of the photographs the tiny model knows, in the order of its prompt table."""

SUBJECTS = ("astronaut", "cat", "coffee", "galaxies", "retina", "rocket")
SHOWN_SUBJECTS = ("astronaut", "coffee")  # in the demo, unless others are asked for
