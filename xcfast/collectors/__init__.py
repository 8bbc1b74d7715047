"""Collectors: the env loops that fill a rollout."""
