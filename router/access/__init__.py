"""Who may ask: virtual keys, budgets and rate limits."""
