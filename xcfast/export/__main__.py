"""``python -m xcfast.export``."""

from xcfast.export.command import main

if __name__ == "__main__":
    raise SystemExit(main())
