"""Offline evaluation: measures the worth of answers from cases, traces or a ledger."""
