"""The shared language of all processes: the standard library, and msgspec in `config`."""
