"""Fuzzing of a real mitmdump with hostile requests: `make fuzz`."""
