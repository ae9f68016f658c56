"""`python -m orchestrator.cli`: the command line where the `nnfleet` command is not installed."""

from orchestrator.cli import main

main()
