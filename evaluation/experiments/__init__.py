"""A/B statistics: units, confidence sequences, guardrails and the rule to ship."""
