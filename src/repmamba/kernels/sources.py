"""A digest of the C++ sources, stored in the library to detect that they have changed since.

The build uses it too (hatch_build.py), so it imports nothing of repmamba.
"""

import hashlib
from pathlib import Path


def digest(folder: Path) -> str:
    """The digest of all C++ files in a folder; "" if there are none, as in an installed wheel."""
    files = sorted((*folder.glob("*.cpp"), *folder.glob("*.h")))
    contents = b"".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)
    return hashlib.blake2b(contents, digest_size=8).hexdigest() if files else ""
