"""The two sizes that all scans share; importable without torch."""

# size of a channel's state h
STATE = 16

# directions in which a map is scanned; see `repmamba.scan.directions`
DIRECTIONS = 4
