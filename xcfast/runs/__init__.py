"""Runs: from a configuration to its summary."""
