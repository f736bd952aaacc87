"""Playing inside a world model."""
