"""Every call passes here: who calls, whether it may, what is recorded."""
