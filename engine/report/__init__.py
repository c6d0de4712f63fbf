"""What a finished run or comparison says of itself: bins, blocks and alerts. Pure functions."""
