"""Hostile requests through a real mitmdump: `make fuzz`."""
