"""The judge: whether a small model's draft may be served."""
