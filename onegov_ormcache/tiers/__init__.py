"""The process tier, the shared tier, and how values become bytes."""
