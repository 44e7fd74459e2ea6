"""The commands that operate a gateway."""
