"""Training on a task of one's own: engines, log, and a resume that continues exactly."""

import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xcfast import run
from xcfast.output import checkpoint as ckpt

EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks"
sys.path.append(str(EXAMPLES))


def test_a_resumed_run_ends_as_one_in_one_go(small):
    """The memory of the environments, a step counter and a goal, is part of the checkpoint."""
    config = small(env_id="ball_table:BallTable-v0", native_envs="auto", keep_checkpoints=9)
    whole = run(config, quiet=True)
    assert (whole.collector_backend, whole.learner_backend) == ("native", "native")
    final = Path(whole.model_dir, ckpt.FINAL_MODEL)
    policy = ckpt.load_checkpoint(final)["policy"]
    for name in ("checkpoint_512.pth", "checkpoint_384.pth", ckpt.FINAL_MODEL):
        Path(whole.model_dir, name).unlink()
    run(config, resume=whole.log_dir, quiet=True)
    again = ckpt.load_checkpoint(final)["policy"]
    assert all(torch.equal(policy[name], again[name]) for name in policy)
    assert not all(torch.equal(policy[name], torch.zeros_like(policy[name])) for name in policy)


def test_the_log_has_the_terms_of_the_reward(small):
    summary = run(small(env_id="ball_table:BallTable-v0", native_envs="auto"), quiet=True)
    log = EventAccumulator(summary.log_dir)
    log.Reload()
    means = {
        name: [event.value for event in log.Scalars(f"reward_terms/{name}")] for name in ("near", "effort", "alive")
    }
    assert all(len(series) == 4 for series in means.values())  # of 4 iterations
    assert all(0.05 < value <= 0.1 for value in means["alive"])  # 0.1 where the ball has not fallen
    assert all(-0.02 < value < 0 for value in means["effort"])


def test_two_ranks_train_on_a_task(tmp_path):
    keys = "num_ranks=2 device=cpu parallels=4 horizon_size=8 running_steps=64 n_minibatch=2 n_epochs=1 test_episode=1"
    keys += f" test_step_limit=20 num_threads=1 log_dir={tmp_path}/logs model_dir={tmp_path}/models"
    command = [sys.executable, "-m", "xcfast.train", "--env-id", "ball_table:BallTable-v0", *keys.split()]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert "final score" in done.stdout
    assert "not by the native engine" not in done.stderr
