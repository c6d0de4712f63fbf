"""`raysift compare`: selections of several methods and seeds, each trained and tested under one recipe, and what came out."""
