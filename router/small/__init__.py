"""The small side: our worker's client and supervisor, or a remote completion server."""
