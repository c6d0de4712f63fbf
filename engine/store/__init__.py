"""The gradient store: vectors of rows on disk, projected to fewer numbers or to signs."""
