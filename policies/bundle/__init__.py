"""A judge, its policy and its certificates as one checked, immutable folder."""
