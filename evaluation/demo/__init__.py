"""The demo's 60 requests with their recorded answers, the only data in this package."""
