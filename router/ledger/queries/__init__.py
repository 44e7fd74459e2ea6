"""Questions to the ledger: costs, drift and decisions."""
