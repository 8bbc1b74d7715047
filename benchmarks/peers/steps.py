"""Steps EnvPool's environments in sync mode with random actions: steps.py ENV_ID NUM_ENVS NUM_THREADS."""

import json
import sys
import time

import envpool
import numpy as np


def main() -> None:
    """Answer requests {"vector_steps": ...} until standard input ends."""
    env_id, num_envs, num_threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    envs = envpool.make_gymnasium(env_id, num_envs=num_envs, num_threads=num_threads, seed=0)
    space = envs.action_space
    actions = np.random.default_rng(0).uniform(space.low, space.high, (100, num_envs, *space.shape))
    envs.reset()
    for line in sys.stdin:
        count = json.loads(line)["vector_steps"]
        start = time.perf_counter()
        for step in range(count):
            envs.step(actions[step % len(actions)])
        print("\n" + json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
