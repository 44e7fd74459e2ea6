"""Policies and scorers run over the traces of a small and a large model."""
