"""The command line: options, help, printed output, and the display and explanation of runs."""
