"""The large side: pass-through, litellm, retries, prices and what its answer held."""
