"""The decision on one request: draft, verdict, answer or escalation, and its record."""
