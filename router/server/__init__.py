"""The composition root: from settings to objects to a running ASGI server."""
