"""`python -m xcfast.config`: every key with its values, default and meaning, as markdown."""

from xcfast.config.table import config_table

if __name__ == "__main__":
    print(config_table())
