"""The request, process and shared tiers, their locks, and the serializer of values."""
