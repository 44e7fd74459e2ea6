"""Rules that turn a score into a verdict: thresholds, stages, prices and certificates."""
