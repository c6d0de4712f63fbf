"""Questions with checkable answers, the metrics that judge answers, and how sure a mean is."""
