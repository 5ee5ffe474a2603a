"""The two sizes that are the same in every scan of ours; for those too who import no torch."""

STATE = 16
"""Numbers of a channel's state h."""

DIRECTIONS = 4
"""In which a map is scanned; `repmamba.scan.directions` says which."""
