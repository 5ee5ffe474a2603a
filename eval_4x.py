"""`python eval_4x.py --data_dir DIR`: the published evaluation, by the packaged x4 weights.

DIR holds GT/ and LR/, flat or in class folders. Runs `repmamba evaluate DIR --weights x4 --rule
published`; other options of it may follow. docs/how-to/training.md says where the published script
differs.
"""

import argparse

from repmamba.cli.main import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="folder with GT/ and LR/ in it")
    parser.add_argument(
        "--weights", action="append", help="packaged weights by name, or a checkpoint (default: x4)"
    )
    options, others = parser.parse_known_args()
    weights = [part for name in options.weights or ["x4"] for part in ("--weights", name)]
    main(["evaluate", options.data_dir, *weights, "--rule", "published", *others])
