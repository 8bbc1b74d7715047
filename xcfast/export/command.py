"""The command line of ``python -m xcfast.export``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from xcfast.errors import CheckpointError, ConfigError, EnvError
from xcfast.export.check import ExportError
from xcfast.export.export import SUFFIXES, export_policy
from xcfast.output.files import user_path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 1 if the round trip fails, 2 if the run or the command line is bad."""
    args = _parser().parse_args(argv)
    try:
        done = export_policy(args.run, args.output, args.format, args.check)
    except ExportError as error:
        print(f"xcfast.export: {error}", file=sys.stderr)
        return 1
    except (CheckpointError, ConfigError, EnvError, OSError) as error:
        print(f"xcfast.export: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f'xcfast.export: {error.name} is missing; pip install "xcfast[export]"', file=sys.stderr)
        return 2
    print(done.path)
    if done.difference is not None:
        print(f"round trip: largest difference {done.difference:.2g}, rounding allows {done.allowed:.2g}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xcfast.export",
        description="Write a policy as one file: raw observation in, action out.",
    )
    add = parser.add_argument
    add("run", type=user_path, metavar="RUN", help="a run folder (its best model), or a model file")
    add("--format", choices=tuple(SUFFIXES), default="onnx", help="default: onnx; torch is torch.export's")
    add("-o", "--output", type=user_path, metavar="FILE", help="default: beside the model, with the format's suffix")
    text = "compare the file with the policy before it gets its name (default)"
    add("--check", action=argparse.BooleanOptionalAction, default=True, help=text)
    return parser
