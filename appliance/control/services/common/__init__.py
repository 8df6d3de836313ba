"""What all services share: caller, change, pages, problems, keys."""
