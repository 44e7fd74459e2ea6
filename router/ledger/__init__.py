"""The durable record: one row for each decision, committed before the last byte of its answer."""
