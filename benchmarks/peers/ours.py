"""Trains with xcfast as ppo.py does with the peers: ours.py SETTINGS.yaml [key=value ...].

Each request is a run of its own in the same process; the seconds are those of the run's summary, which leaves out what
comes before the first and after the last step, as the peers' seconds do.
"""

import json
import os
import sys
import tempfile
import time

from xcfast import load_config, run


def main() -> None:
    """Answer requests until standard input ends."""
    path, *overrides = sys.argv[1:]
    more = dict(override.split("=") for override in overrides)
    with tempfile.TemporaryDirectory() as folder:
        base = load_config(path)
        for line in sys.stdin:
            steps = json.loads(line)["rollouts"] * base.batch_size
            settings = {"running_steps": steps, "checkpoint_interval": steps, "device": "cpu", **more}
            folders = {"log_dir": os.path.join(folder, "logs"), "model_dir": os.path.join(folder, "models")}
            start = time.perf_counter()
            summary = run(load_config(path, {**settings, **folders}), mode="train", quiet=True)
            answer = {
                "steps": summary.steps,
                "seconds": summary.steps / summary.steps_per_second,
                "collection_seconds": summary.collection_seconds,
                "update_seconds": summary.update_seconds,
                "wall_seconds": time.perf_counter() - start,
                "engines": f"{summary.collector_backend}/{summary.learner_backend}",
            }
            print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
