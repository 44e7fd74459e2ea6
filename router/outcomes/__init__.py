"""What became of an answer: labels, shadow audits, harvested training rows and observed decisions."""
