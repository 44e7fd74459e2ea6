"""What turns a score into a verdict: thresholds, stages, prices and certificates."""
