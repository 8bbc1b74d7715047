"""``python -m xcfast.sweep``."""

from xcfast.sweep.command import main

if __name__ == "__main__":
    raise SystemExit(main())
