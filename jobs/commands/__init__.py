"""The command line: options, help, what is printed, and how a run is shown and explained."""
