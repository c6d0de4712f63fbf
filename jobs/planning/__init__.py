"""`raysift plan`: measures a few rows, says what each stage of a run will take, and follows a run that was planned."""
