"""The small model by itself: its scores, its failures and the number of tools."""
