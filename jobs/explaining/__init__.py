"""Why a row was taken or not: `raysift explain RUN ID` and `raysift.explain`. It reads what a run left, method by method."""
