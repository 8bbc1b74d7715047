"""The table of all keys that `python -m xcfast.config` prints."""

from xcfast.config.keys import INERT_KEYS, RENAMED_KEYS, keys_of
from xcfast.config.schema import Config, hints
from xcfast.config.values import describe_type


def config_table() -> str:
    """Returns all keys with type, default and meaning, as markdown."""
    defaults = Config().to_dict()
    lines = ["| key | values | default | what it does |", "|---|---|---|---|"]
    for name, rules in keys_of(Config).items():
        shown = "null" if defaults[name] is None else defaults[name]
        lines.append(f"| `{name}` | {describe_type(hints()[name], rules)} | `{shown}` | {rules.doc} |")
    lines += ["", "Other names that are read:", ""]
    lines += [f"- `{old}` as `{new}`" for old, new in RENAMED_KEYS.items()]
    for name, rules in keys_of(Config).items():
        lines += [f"- `{name}: {old}` as `{new}`" for old, new in rules.aliases.items()]
    lines += ["", "Keys without effect here:", ""]
    lines += [f"- `{name}`: {reason}" for name, reason in INERT_KEYS.items()]
    return "\n".join(lines)
