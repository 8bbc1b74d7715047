"""``python -m xcfast.plot``."""

from xcfast.plot.command import main

if __name__ == "__main__":
    raise SystemExit(main())
