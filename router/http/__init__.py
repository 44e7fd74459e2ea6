"""The ASGI endpoints: bodies, admission, streamed responses, status, feedback and administration."""
