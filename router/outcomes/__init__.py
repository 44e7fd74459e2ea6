"""The outcomes of answers: labels, shadow audits, harvested training rows and observed decisions."""
