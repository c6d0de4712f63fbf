"""`raysift compare`: selections of several methods and seeds, all trained and tested under one recipe, and results."""
