"""The audit chain: what was asked, by whom, and how it ended."""
