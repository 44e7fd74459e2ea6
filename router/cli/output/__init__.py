"""How commands print: tables that never cut their numbers, and one decision in words."""
