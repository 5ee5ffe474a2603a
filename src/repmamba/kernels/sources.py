"""A digest of the C++ sources. A library carries that of its own, so that it is known when they
have changed since.

Used by the build as well (hatch_build.py), so it imports nothing of repmamba.
"""

import hashlib
from pathlib import Path


def digest(folder: Path) -> str:
    """Of all C++ in a folder; "" without any, as in an installed wheel."""
    files = sorted((*folder.glob("*.cpp"), *folder.glob("*.h")))
    contents = b"".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)
    return hashlib.blake2b(contents, digest_size=8).hexdigest() if files else ""
