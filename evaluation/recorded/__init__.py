"""Recorded large models, priced and served as an OpenAI endpoint."""
