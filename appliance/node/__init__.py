"""The agent of one server: it joins, dials out, starts and stops work, and reports."""
