"""The gateway: a request comes in over HTTP, one answer goes out, and one row is kept."""
