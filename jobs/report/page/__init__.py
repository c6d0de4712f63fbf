"""The one file that people open: a record drawn as a page that needs no network."""
