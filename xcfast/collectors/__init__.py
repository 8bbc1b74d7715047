"""Collectors: the loops over environments that fill rollouts."""
