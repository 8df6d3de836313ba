"""One revision per change of the schema; the number orders them."""
