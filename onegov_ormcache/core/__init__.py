"""What a cache is, for any program that uses SQLAlchemy: it knows no web framework."""
