"""`python train.py`: the published README's training, by the packaged recipe `published`.

It is `repmamba train published -o runs/published`, whose other options may follow; the published
script's arguments are keys of the recipe here, and docs/how-to/training.md has the table.
"""

import sys

from repmamba.cli.main import main

if __name__ == "__main__":
    main(["train", "published", *sys.argv[1:]])
