"""Training rows: read, split, augmented and constructed."""
