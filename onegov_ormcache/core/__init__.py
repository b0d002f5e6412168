"""The cache itself, for any program that uses SQLAlchemy. It knows no web framework."""
