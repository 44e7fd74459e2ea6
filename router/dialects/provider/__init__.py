"""The provider's side of a dialect: calls in pieces, reasons to end, adjacency of results, and JSON as it comes."""
