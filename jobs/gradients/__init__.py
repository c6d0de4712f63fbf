"""ROSE and LESS: target files, checkpoints, row gradients, the store and its reduce, new targets for a finished run."""
