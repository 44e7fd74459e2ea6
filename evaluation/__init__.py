"""What answers are worth, computed offline from cases, traces or a ledger."""
