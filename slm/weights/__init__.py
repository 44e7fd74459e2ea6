"""Models and adapters by name and SHA-256: found, downloaded, converted and checked."""
