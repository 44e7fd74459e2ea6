"""A request and its correct answer: loaded, scored by BFCL's rules, split and sampled."""
