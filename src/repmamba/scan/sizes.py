"""The two sizes that all scans share; importable without torch."""

STATE = 16  # size of a channel's state h
DIRECTIONS = 4  # directions in which a map is scanned; see `repmamba.scan.directions`
