"""The connection to Redis. The tag store and the shared tier use one server through one client."""
