"""Thresholds chosen, certified and written as a bundle, and how good a fitted judge is."""
