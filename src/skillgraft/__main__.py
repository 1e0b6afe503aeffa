"""`python -m skillgraft`."""

from skillgraft.cli import main

main()
