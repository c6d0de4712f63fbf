"""`raysift check`: do rows that score higher teach more? Models trained on bins of a finished run's scores."""
