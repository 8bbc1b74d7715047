"""Several processes (ranks) that train one policy together."""
