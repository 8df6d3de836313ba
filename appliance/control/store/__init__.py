"""The state database and the location of sealed objects.

The only place that opens a database; `auth` and `services` write statements over `tables`.
"""
