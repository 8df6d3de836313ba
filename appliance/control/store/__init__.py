"""The state database and the location of sealed objects; the only home of SQLAlchemy."""
