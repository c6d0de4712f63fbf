"""The order of stages, resources, resume, the command line and the Python API. Ray lives here."""
