"""`python -m repmamba.cli`: the command line where its script is not on the path."""

from repmamba.cli.main import main

main()
