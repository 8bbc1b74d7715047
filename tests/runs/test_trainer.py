import csv
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from signal import SIGTERM

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv

from xcfast import load_config
from xcfast.config import ConfigError
from xcfast.errors import RankLostError, RunFailed
from xcfast.output import checkpoint as ckpt
from xcfast.output.folders import RunFolders
from xcfast.runs.run import run, train_to_the_end
from xcfast.runs.trainer import Trainer

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "tests" / "data" / "xuance_tutorial.yaml"


def weights(folder, name=ckpt.FINAL_MODEL):
    return ckpt.load_checkpoint(Path(folder) / name)["policy"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def events(log_dir):
    """(tag, step, value) of the run's one event file."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = Path(log_dir).glob("events.out.tfevents.*")
    found = []
    for event in EventFileLoader(str(path)).Load():
        found += [
            (v.tag, event.step, v.tensor.float_val[0] if v.tensor.float_val else v.simple_value)
            for v in event.summary.value
        ]
    return found


def test_benchmark_mode_leaves_every_artefact(small):
    config = small()
    summary = run(config, quiet=True)
    assert summary.steps == 512 and summary.steps_per_second > 0
    logs, models = Path(summary.log_dir), Path(summary.model_dir)
    assert logs.parent.name == models.parent.name == config.env_id
    assert logs.name == models.name and logs.name.startswith(f"seed_{config.seed}_")
    expected = {
        "config.json",
        "learning_curve.csv",
        "test_scores.csv",
        "meta_data.json",
        "best_model_info.json",
        "summary.json",
    }
    assert expected <= {path.name for path in logs.iterdir()}
    # evaluations at 0 and after the iterations that pass 256 and 512
    assert [row[0] for row in read_csv(logs / "learning_curve.csv")] == ["step", "0", "256", "512"]
    scores = read_csv(logs / "test_scores.csv")
    assert scores[0] == ["step", "return_episode_0", "return_episode_1"]
    assert float(read_csv(logs / "learning_curve.csv")[-1][1]) == pytest.approx(
        np.mean([float(x) for x in scores[-1][1:]])
    )
    best = json.loads((logs / "best_model_info.json").read_text())
    assert best == {"mean": summary.best_mean, "std": summary.best_std, "step": summary.best_step}
    assert json.loads((logs / "summary.json").read_text()) == summary.to_dict()
    meta = json.loads((logs / "meta_data.json").read_text())
    assert meta["env_id"] == config.env_id and meta["timestamps"]["elapsed_seconds"] > 0
    names = {path.name for path in models.iterdir()}
    assert {ckpt.BEST_MODEL, ckpt.FINAL_MODEL, "checkpoint_512.pth"} <= names
    assert len(ckpt.periodic_checkpoints(models)) == config.keep_checkpoints
    tags = {tag for tag, _, _ in events(logs)}
    assert {
        "actor_loss",
        "critic_loss",
        "entropy",
        "learning_rate",
        "predict_value",
        "clip_ratio",
        "Test-Episode-Rewards/Mean-Score",
        "Test-Episode-Rewards/Std-Score",
        "Train-Episode-Rewards/rank_0/env-0",
        "Episode-Steps/rank_0/env-0",
        "losses/approx_kl",
        "losses/clipfrac",
        "losses/explained_variance",
        "losses/grad_norm",
        "charts/SPS",
        "charts/episodic_return",
        "time/collection_seconds",
        "time/update_seconds",
        "time/evaluation_seconds",
    } <= tags


def test_same_seed_same_run_and_evaluation_leaves_no_trace(small):
    """Bit for bit: with evaluations, without, and again; another seed differs."""
    first = weights(run(small(), quiet=True).model_dir)
    assert same(first, weights(run(small(eval_interval=128, test_episode=3), quiet=True).model_dir))
    trained = run(small(), mode="train", quiet=True)
    assert trained.best_mean is None and trained.final_mean is None
    assert same(first, weights(trained.model_dir))
    assert not same(first, weights(run(small(seed=2), mode="train", quiet=True).model_dir))


@pytest.mark.parametrize("env_id", ["Ant-v4", "CartPole-v1"])
@pytest.mark.parametrize("vectorize", ["DummyVecEnv", "SubprocVecEnv", "MujocoVecEnv", "ClassicControlVecEnv"])
def test_every_kind_of_run_ends(small, env_id, vectorize):
    keys = {"policy": "Categorical_AC"} if env_id == "CartPole-v1" else {}
    config = small(
        env_id=env_id, vectorize=vectorize, num_workers=2, running_steps=256, test_episode=1, logger="none", **keys
    )
    assert run(config, quiet=True).steps == 256


RESUME = """
import sys
from xcfast import load_config
from xcfast.runs.run import train_to_the_end
from xcfast.runs.trainer import Trainer
config = load_config(overrides={overrides!r})
trainer = Trainer(config, "benchmark", resume={resume!r}, quiet=True)
if {stop_after!r}:
    original = trainer.iterate
    def iterate():
        original()
        if trainer.progress.iteration == {stop_after!r}:
            import os, signal
            os.kill(os.getpid(), signal.{signal})
    trainer.iterate = iterate
try:
    print("folder", train_to_the_end(trainer).log_dir)
finally:
    trainer.close()
"""


def run_in_new_process(overrides, resume=None, stop_after=None, signal_name="SIGTERM"):
    code = RESUME.format(overrides=overrides, resume=resume, stop_after=stop_after, signal=signal_name)
    if resume is not None:
        code = code.replace(f"resume={resume!r}", f"resume=__import__('pathlib').Path({resume!r})")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("folder ")[1].strip()


@pytest.mark.parametrize(
    ("env_id", "vectorize", "signal_name", "noise_beta"),
    [
        ("Ant-v4", "DummyVecEnv", "SIGINT", 0.0),
        ("InvertedPendulum-v4", "SubprocVecEnv", "SIGTERM", 0.0),
        ("InvertedPendulum-v4", "MujocoVecEnv", "SIGINT", 0.0),
        ("InvertedPendulum-v4", "MujocoVecEnv", "SIGTERM", 0.5),
    ],
)
def test_resumed_run_ends_bit_identical(small, env_id, vectorize, signal_name, noise_beta):
    """Stopped by a signal after 2 of 4 iterations, continued in a new process, compared with an uninterrupted run."""
    config = small(env_id=env_id, vectorize=vectorize, num_workers=2, noise_beta=noise_beta)
    overrides = {**config.to_dict()}
    whole = run(config, quiet=True)
    stopped = run_in_new_process(overrides, stop_after=2, signal_name=signal_name)
    folders = RunFolders.find(Path(stopped))
    assert folders.newest_checkpoint().name == "checkpoint_256.pth"
    assert not (folders.model_dir / ckpt.FINAL_MODEL).exists()
    resumed = run_in_new_process(overrides, resume=stopped)
    assert resumed == stopped
    assert whole.collector_backend == ("native" if vectorize == "MujocoVecEnv" else "torch")
    full, again = (ckpt.load_checkpoint(Path(d) / ckpt.FINAL_MODEL) for d in (whole.model_dir, folders.model_dir))
    assert same(full["policy"], again["policy"])
    for name in ("obs_normalizer", "reward_normalizer", "collector"):
        assert_equal_trees(full[name], again[name], name)
    assert read_csv(Path(whole.log_dir) / "test_scores.csv") == read_csv(folders.log_dir / "test_scores.csv")
    ours, theirs = events(whole.log_dir), events(folders.log_dir)
    timeless = [[e for e in each if not e[0].startswith(("time/", "charts/SPS"))] for each in (ours, theirs)]
    assert timeless[0] == timeless[1]


def test_run_goes_on_with_another_collector(small, capfd):
    config = small(vectorize="MujocoVecEnv", collector_backend="torch")
    first = run(replace(config, running_steps=256), mode="train", quiet=True)
    second = run(replace(config, collector_backend="native"), mode="train", resume=first.log_dir)
    assert (first.collector_backend, second.collector_backend) == ("torch", "native")
    assert second.steps == 512
    out = capfd.readouterr().out
    assert "native (as configured" in out and "start anew" not in out
    assert "4 x MujocoVecEnv, 1 threads" in out


def test_native_collector_that_cannot_serve_is_refused(small):
    with pytest.raises(ConfigError, match="native collector cannot be used.*SubprocVecEnv"):
        run(small(vectorize="SubprocVecEnv", num_workers=2, collector_backend="native"), quiet=True)


def assert_equal_trees(a, b, where):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal_trees(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal_trees(x, y, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def test_logs_written_after_the_checkpoint_are_cut_back(small):
    """A run that is killed leaves log lines of steps that its last checkpoint does not know."""
    config = small(keep_checkpoints=9)
    whole = run(config, quiet=True)
    curve = read_csv(Path(whole.log_dir) / "learning_curve.csv")
    before = [e for e in events(whole.log_dir) if not e[0].startswith(("time/", "charts/SPS"))]
    Path(whole.model_dir, "checkpoint_512.pth").unlink()
    Path(whole.model_dir, "checkpoint_384.pth").unlink()
    resumed = run(config, resume=whole.log_dir, quiet=True)
    assert resumed.log_dir == str(Path(whole.log_dir).resolve())
    assert read_csv(Path(whole.log_dir) / "learning_curve.csv") == curve
    after = [e for e in events(whole.log_dir) if not e[0].startswith(("time/", "charts/SPS"))]
    assert after == before


def test_resuming_envs_without_saved_state_resets_them_and_says_so(small, capfd):
    rewards = gymnasium.wrappers.ClipReward.wrapper_spec(min_reward=-1.0, max_reward=1.0)
    gymnasium.register("Clipped-v0", entry_point=CartPoleEnv, additional_wrappers=(rewards,))
    try:
        config = small(env_id="Clipped-v0", policy="Categorical_AC", running_steps=1024)
        first = run(replace(config, running_steps=512), quiet=True)
        resumed = run(config, resume=first.model_dir)
    finally:
        del gymnasium.registry["Clipped-v0"]
    assert resumed.steps == 1024
    assert "all episodes start anew" in capfd.readouterr().out


def test_short_run_of_classic_control_is_native_throughout(small, capfd):
    """By default, from the configuration file to the evaluation; interrupted and resumed it is the same run."""
    keys = {"representation_hidden_size": [16], "actor_hidden_size": [16], "critic_hidden_size": [16]}
    keys |= {"running_steps": 5120, "eval_interval": 2560, "test_episode": 4, "device": "cpu", "logger": "none"}
    defaults = small()
    keys |= {"log_dir": defaults.log_dir, "model_dir": defaults.model_dir}
    config = load_config(ROOT / "configs" / "cartpole.yaml", overrides=keys)
    whole = run(config)
    out = capfd.readouterr().out
    assert "x ClassicControlVecEnv, " in out and "policy and physics in C++, all threads" in out
    assert (whole.collector_backend, whole.learner_backend, whole.steps) == ("native", "native", 5120)
    first = run(replace(config, running_steps=2560, end_factor_lr_decay=1.0), quiet=True)
    resumed = run(replace(config, end_factor_lr_decay=1.0), resume=first.log_dir, quiet=True)
    straight = run(replace(config, end_factor_lr_decay=1.0), quiet=True)
    assert same(weights(straight.model_dir), weights(resumed.model_dir))


def test_resume_names_what_is_wrong(small, tmp_path):
    config = small()
    with pytest.raises(ckpt.CheckpointError, match="no such run folder"):
        run(config, resume=tmp_path / "nowhere", quiet=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ckpt.CheckpointError, match="not a run folder"):
        run(config, resume=tmp_path / "empty", quiet=True)
    done = run(config, mode="train", quiet=True)
    newest = RunFolders.find(Path(done.log_dir)).newest_checkpoint()
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(ckpt.CheckpointError, match=rf"{newest.name}: truncated"):
        run(config, resume=done.log_dir, quiet=True)


@pytest.mark.parametrize(
    ("env_id", "reason"),
    [
        ("toys:toy/Poisoned-v0", "observation"),
        ("toys:toy/PoisonedReward-v0", "reward"),
        ("toys:toy/Raises-v0", "the simulator broke"),
    ],
)
@pytest.mark.parametrize("vectorize", ["DummyVecEnv", "SubprocVecEnv"])
def test_failing_env_stops_the_run_with_a_saved_model(small, env_id, reason, vectorize):
    config = small(env_id=env_id, vectorize=vectorize, num_workers=2, use_obsnorm=False, test_episode=1)
    with pytest.raises(RunFailed, match=f"(?is)stopped at step 128.*{reason}.*checkpoint_128.pth") as failure:
        run(config, mode="train", quiet=True)
    state = ckpt.load_checkpoint(Path(str(failure.value).rsplit(" in ", 1)[1]))
    assert state["step"] == 128
    assert all(value.isfinite().all() for value in state["policy"].values())


def test_killed_worker_stops_the_run_with_a_saved_model(small):
    psutil = pytest.importorskip("psutil")
    config = small(vectorize="SubprocVecEnv", num_workers=2, running_steps=10**6, logger="none")
    trainer = Trainer(config, "train", quiet=True)
    workers = [p for p in psutil.Process().children() if "xcfast.envs.worker" in p.cmdline()]
    assert len(workers) == 2
    killer = threading.Timer(1.0, workers[1].kill)
    killer.start()
    try:
        with pytest.raises(RunFailed, match=r"(?s)stopped at step \d+: worker 1 .*SIGKILL.*checkpoint_\d+\.pth"):
            train_to_the_end(trainer)
    finally:
        killer.join()
        trainer.close()


FULL_DISK = """
import resource, sys
from xcfast import load_config, run
from xcfast.errors import RankLostError, RunFailed
config = load_config(overrides={overrides!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))  # a checkpoint does not fit, the small files do
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    run(config, quiet=True)
except RunFailed as error:
    print("failed:", error)
"""


def test_full_disk_costs_the_checkpoints_not_the_run_and_is_told(small):
    config = small()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = FULL_DISK.format(overrides=config.to_dict())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=env)
    assert "failed: step 512 was reached but could not be saved" in done.stdout, done.stderr
    assert "checkpoint_512.pth: not saved: [Errno 27] File too large" in done.stderr
    (curve,) = Path(config.log_dir).glob("*/*/learning_curve.csv")
    assert [row[0] for row in read_csv(curve)] == ["step", "0", "256", "512"]
    assert not list(Path(config.model_dir).glob("*/*/*.pth*"))


def test_a_stop_during_the_first_evaluation_is_saved_and_resumed(small):
    """The evaluation stays due; the resumed run ends like one that was not stopped."""
    config = small()
    whole = run(config, quiet=True)
    trainer = Trainer(config, "benchmark", quiet=True)
    steps = []
    trainer.components.evaluator._should_stop = lambda: (
        steps.append(1) or (len(steps) == 3 and os.kill(os.getpid(), SIGTERM)) or (trainer.stop.requested)
    )
    try:
        summary = train_to_the_end(trainer)
    finally:
        trainer.close()
    assert summary.steps == 0 and summary.best_mean is None
    resumed = run(config, resume=summary.log_dir, quiet=True)
    assert same(weights(whole.model_dir), weights(resumed.model_dir))
    assert read_csv(Path(whole.log_dir) / "test_scores.csv") == read_csv(Path(resumed.log_dir) / "test_scores.csv")


@pytest.mark.parametrize("at", ["iterate", "saver.save_checkpoint", "evaluate"])
def test_a_signal_at_any_point_is_saved(small, at):
    trainer = Trainer(small(logger="none", checkpoint_interval=128), "benchmark", quiet=True)
    *within, name = at.split(".")
    owner = getattr(trainer, within[0]) if within else trainer
    original = getattr(owner, name)

    def signalled(*args):
        result = original(*args)
        if trainer.progress.iteration == 2:
            os.kill(os.getpid(), SIGTERM)
        return result

    setattr(owner, name, signalled)
    try:
        summary = train_to_the_end(trainer)
    finally:
        trainer.close()
    assert 256 <= summary.steps < 512
    assert RunFolders.find(Path(summary.log_dir)).newest_checkpoint().name == f"checkpoint_{summary.steps}.pth"


def test_resume_refuses_another_configuration_or_network(small):
    config = small()
    done = run(config, mode="train", quiet=True)
    with pytest.raises(ConfigError, match=r"cannot change: .*horizon_size 32 -> 16"):
        run(replace(config, horizon_size=16), resume=done.log_dir, quiet=True)
    with pytest.raises(ConfigError, match=r"cannot change: adam_beta2 0.999 -> 0.99"):
        run(replace(config, adam_beta2=0.99), resume=done.log_dir, quiet=True)
    kept = json.loads((Path(done.log_dir) / "config.json").read_text())
    assert kept == config.to_dict() | {"policy": "Gaussian_AC"}
    newest = RunFolders.find(Path(done.log_dir)).newest_checkpoint()
    state = ckpt.load_checkpoint(newest)
    state["policy"]["actor.logstd"] = torch.zeros(3)
    ckpt.save_checkpoint(newest, state)
    with pytest.raises(ckpt.CheckpointError, match=rf"{newest.name}: does not fit this run"):
        run(config, resume=done.log_dir, quiet=True)


def test_resuming_from_an_older_checkpoint_sets_later_ones_aside(small):
    config = small(keep_checkpoints=9)
    done = run(config, mode="train", quiet=True)
    models = Path(done.model_dir)
    resumed = run(config, resume=models / "checkpoint_256.pth", quiet=True)
    assert resumed.steps == 512
    names = {path.name for path in models.iterdir()}
    assert {"checkpoint_384.pth.superseded", "checkpoint_512.pth.superseded", "checkpoint_512.pth"} <= names
    assert same(weights(models, "checkpoint_512.pth"), weights(models, "checkpoint_512.pth.superseded"))


def test_the_best_model_is_that_of_the_best_scores(small):
    summary = run(small(eval_interval=128), quiet=True)
    rows = read_csv(Path(summary.log_dir) / "learning_curve.csv")[1:]
    step, score = max(((int(step), float(mean)) for step, mean in rows), key=lambda row: (row[1], -row[0]))
    assert (summary.best_step, summary.best_mean) == (step, pytest.approx(score))
    assert ckpt.load_checkpoint(Path(summary.model_dir) / ckpt.BEST_MODEL)["step"] == step


@pytest.mark.parametrize("env_id", ["toys:toy/NanAtOnce-v0", "toys:toy/RaisesAtOnce-v0"])
def test_an_env_that_fails_in_the_warm_up(small, env_id):
    with pytest.raises(RunFailed, match=r"(?s)stopped at step 0: .*Nothing had been trained yet"):
        run(small(env_id=env_id), mode="train", quiet=True)


def test_test_mode_reports_the_best_model(small, capfd):
    config = small()
    trained = run(config, quiet=True)
    tested = run(replace(config, test_episode=3), mode="test")
    out = capfd.readouterr().out
    assert ckpt.BEST_MODEL in out and "Mean Score" in out
    assert tested.model_dir == str(Path(trained.model_dir).resolve())
    # the network is the model's own, whatever the YAML says now
    other = run(replace(config, test_episode=3, actor_hidden_size=[8], parallels=2), mode="test", quiet=True)
    assert other.final_mean == tested.final_mean
    by_path = run(replace(config, test_episode=3), mode="test", resume=trained.model_dir, quiet=True)
    assert by_path.final_mean == tested.final_mean


def test_test_mode_without_a_model_says_where_it_looked(small):
    with pytest.raises(
        ckpt.CheckpointError, match=r"no best_model.pth or final_train_model.pth of seed 79811 in .*InvertedPendulum-v4"
    ):
        run(small(), mode="test", quiet=True)
    run(small(seed=5), mode="train", quiet=True)
    with pytest.raises(ckpt.CheckpointError, match="seeds with a run there: 5"):
        run(small(), mode="test", quiet=True)


def test_start_table_and_end_table(small, capfd):
    run(small(num_threads=1))
    out = capfd.readouterr().out
    for text in (
        "InvertedPendulum-v4",
        "DummyVecEnv",
        "torch (",
        "4 envs x 32 steps = 128",
        "2 epochs x 4 minibatches of 32",
        "best score",
        "final score",
        "update",
    ):
        assert text in out
    assert "\r" not in out  # no progress bar where stdout is no terminal


def test_unstable_physics_is_reported(small, monkeypatch, capfd):
    from xcfast.envs import MujocoVecEnv

    monkeypatch.setattr(MujocoVecEnv, "warning_counts", property(lambda envs: {"BADQACC": 3}))
    run(small(vectorize="MujocoVecEnv"), mode="train", quiet=True)
    assert "MuJoCo reported in training: BADQACC 3 times" in capfd.readouterr().err


def test_the_tutorial_configuration_trains(small):
    """XuanCe's page's YAML, unchanged but for its length and where the output goes."""
    from xcfast import load_config

    where = small()
    folders = {"log_dir": where.log_dir, "model_dir": where.model_dir}
    config = load_config(TUTORIAL, {**folders, "running_steps": 4096, "n_epochs": 1, "test_episode": 1})
    summary = run(config, quiet=True)
    assert (summary.steps, summary.collector_backend, summary.learner_backend) == (4096, "native", "native")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_inverted_pendulum_is_solved(small, seed):
    from xcfast import load_config
    from xcfast.config import shipped_config

    where = small()
    folders = {"log_dir": where.log_dir, "model_dir": where.model_dir, "logger": "none"}
    keys = {"seed": seed, "env_seed": seed, "running_steps": 150_000}
    summary = run(load_config(shipped_config("InvertedPendulum-v4"), {**folders, **keys}), quiet=True)
    assert summary.best_mean == 1000.0


def test_torch_threads_are_given_back(small):
    torch.set_num_threads(2)
    run(small(logger="none"), mode="train", quiet=True)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("key", ["log_dir", "model_dir"])
@pytest.mark.parametrize("above", ["file/x", "/dev/null/x", "/proc/x"])
def test_a_folder_that_cannot_be_made_is_an_error_of_its_key(small, tmp_path, key, above):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"^{key}: the folder cannot be made \(.*\); given: .*/x/"):
        run(small(**{key: str(tmp_path / above)}), quiet=True)
    assert not list(tmp_path.glob("models/*/seed_*")) and not (tmp_path / "logs").exists()


def test_a_rank_that_is_lost_before_training_is_one_sentence(small, monkeypatch):
    def lost(*args, **kwargs):
        raise RankLostError("another rank has failed: rank 1: ValueError: x")

    monkeypatch.setattr("xcfast.runs.run.Trainer", lost)
    with pytest.raises(RunFailed, match="^another rank has failed: rank 1: ValueError: x$") as caught:
        run(small(), quiet=True)
    assert caught.value.expected and not caught.value.known


def test_resuming_the_best_model_sets_all_later_checkpoints_aside(small):
    """The best model's step is between two checkpoints; the run goes on from it, not from the old course."""
    config = small(keep_checkpoints=9)
    done = run(config, mode="train", quiet=True)
    models = Path(done.model_dir)
    (models / "checkpoint_256.pth").rename(models / ckpt.BEST_MODEL)
    resumed = run(replace(config, running_steps=384), resume=models / ckpt.BEST_MODEL, quiet=True)
    assert resumed.steps == 384
    assert RunFolders.find(models).newest_checkpoint().name == "checkpoint_384.pth"


def test_a_changed_activation_is_refused_on_resume(small):
    """It has no weights, so a checkpoint cannot tell."""
    done = run(small(), quiet=True)
    with pytest.raises(ConfigError, match="cannot change: activation_action"):
        run(small(activation_action="sigmoid"), resume=done.log_dir, quiet=True)


def test_a_checkpoint_in_the_middle_of_a_rollout_counts_no_row_twice(small):
    config = small(use_obsnorm=True)
    trainer = Trainer(config, "train", None, quiet=True)
    try:
        trainer.advance(config.horizon_size + 5)
        assert trainer.saver.save_checkpoint()
        folder, count = trainer.folders.model_dir, trainer.components.obs_normalizer.rms.count
    finally:
        trainer.close()
    trainer = Trainer(config, "train", folder, quiet=True)
    try:
        trainer.advance(config.horizon_size)
        assert trainer.components.obs_normalizer.rms.count == count + config.batch_size
    finally:
        trainer.close()
