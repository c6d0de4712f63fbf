"""`python -m raysift.jobs` is the `raysift` command: what a cluster runs, where no script is installed."""

from raysift.jobs.commands.cli import main

main()
