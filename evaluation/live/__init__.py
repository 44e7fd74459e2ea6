"""What a running gateway's ledger shows: costs, drift, audits and off-policy estimates."""
