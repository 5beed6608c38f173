"""Plain values: defined, checked when a caller gave them, and written as people do."""
