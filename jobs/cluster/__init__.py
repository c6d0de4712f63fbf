"""The Ray session of a run, and the machines that it has: what a stage gets of them, by role."""
