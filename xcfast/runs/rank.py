"""One rank of a run: ``python -m xcfast.runs.rank JOB``, started by ``xcfast.run`` where several ranks train."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from xcfast.config import load_config
from xcfast.envs.sending import register_text
from xcfast.errors import CheckpointError, ConfigError, EnvError, RunFailed
from xcfast.ranks.launch import read_job, write_outcome
from xcfast.runs.run import run


def main() -> int:
    """Trains, writes the outcome for the process that started the ranks, and returns the exit status."""
    path = Path(sys.argv[1])
    job = read_job(path)
    outcome: dict[str, Any]
    try:
        resume = None if job["resume"] is None else Path(job["resume"])
        config = load_config(overrides=job["config"])
        if job["registration"] is not None:
            register_text(job["registration"])
        outcome = run(config, job["mode"], resume, job["quiet"], below_env=job["below_env"]).to_dict()
    except (ConfigError, CheckpointError, EnvError, RunFailed) as error:
        if isinstance(error, RunFailed) and not error.expected:
            traceback.print_exception(error.__cause__)
        outcome = {"error": type(error).__name__, "message": str(error)}
    write_outcome(path, outcome)
    return 1 if "error" in outcome else 0


if __name__ == "__main__":
    raise SystemExit(main())
