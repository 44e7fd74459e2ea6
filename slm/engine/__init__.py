"""Drafting: the key/value cache, forward passes, speculation, token signals and the shortlist of tools."""
