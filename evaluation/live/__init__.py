"""Figures from a running gateway's ledger: costs, drift, audits and off-policy estimates."""
