"""A report of costs and quality as JSON, as an HTML page and as pictures."""
