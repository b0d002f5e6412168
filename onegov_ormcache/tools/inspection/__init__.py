"""What people can ask about a cache: facts as dataclasses, for the command line and others."""
