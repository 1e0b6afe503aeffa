"""`python -m skillgraft`."""

from skillgraft.cli.app import main

main()
