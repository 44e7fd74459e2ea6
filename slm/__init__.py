"""The small model: text in, events out, and the only place of torch."""
