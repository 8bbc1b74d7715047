"""Sweeps: jobs side by side, stopped, continued, failed, tabulated."""

import csv
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_config import SMALL

from xcfast import load_config, run
from xcfast.config import ConfigError
from xcfast.output import checkpoint as ckpt
from xcfast.plot.curves import mean_and_interval
from xcfast.runs.signals import StopRequest
from xcfast.sweep.command import main
from xcfast.sweep.jobs import Slots
from xcfast.sweep.space import grid_points, search_space, seeds_of


@pytest.fixture
def base(tmp_path, monkeypatch):
    """``base(**keys)``: a small YAML file; what runs goes below the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    def write(**keys):
        (tmp_path / "base.yaml").write_text(yaml.safe_dump({**SMALL, "logger": "none", **keys}))
        return "base.yaml"

    return write


def table():
    with open("out/table.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def runs_of(folder, seed):
    return sorted(Path(folder).glob(f"logs/*/seed_{seed}_*"))


def test_a_grid_over_seeds_ends_in_a_table_and_a_failed_job_ends_no_other(base, capsys):
    failing = "toys:toy/RaisesAtOnce-v0"
    argv = [base(), "--seeds", "2", "--grid", "gamma=0.9", "n_epochs=1", "-o", "out", "--grid"]
    assert main([*argv, f"env_id={failing},InvertedPendulum-v4"]) == 1
    bad, good = table()
    assert (bad["env_id"], bad["seeds"], bad["final_mean"]) == (failing, "0", "")
    assert (good["env_id"], good["gamma"], good["seeds"]) == ("InvertedPendulum-v4", "0.9", "2")
    printed = capsys.readouterr().out
    assert "env_id=toystoyRaisesAtOnce-v0 seed 2: failed (exit status 1: " in printed and "seed_2.log" in printed

    setting = Path("out") / good["setting"]
    runs = [runs_of(setting, seed) for seed in (1, 2)]
    summaries = []
    for seed, (log_dir,) in enumerate(runs, 1):
        config = json.loads((log_dir / "config.json").read_text())
        assert (config["seed"], config["env_seed"], config["n_epochs"]) == (seed, seed, 1)
        assert (config["gamma"], config["num_threads"], config["num_workers"]) == (0.9, 1, 1)
        summaries.append(json.loads((log_dir / "summary.json").read_text()))
    for score in ("final_mean", "best_mean"):
        mean, low, high = mean_and_interval([one[score] for one in summaries])
        assert float(good[score]) == pytest.approx(mean, abs=1e-4)
        assert float(good[f"{score}_low"]) == pytest.approx(low, abs=1e-4)
        assert float(good[f"{score}_high"]) == pytest.approx(high, abs=1e-4)
        assert f"{mean:.2f} [{low:.2f}, {high:.2f}]" in printed
    # a job is the run that the command line would have made
    keys = {"gamma": 0.9, "n_epochs": 1, "seed": 1, "env_seed": 1, "log_dir": "alone", "model_dir": "alone"}
    assert run(load_config(overrides={**SMALL, **keys}), quiet=True).final_mean == summaries[0]["final_mean"]

    written = [(log_dir / "summary.json").stat().st_mtime_ns for (log_dir,) in runs]
    assert main([*argv, "env_id=InvertedPendulum-v4"]) == 0
    assert capsys.readouterr().out.count(": finished before") == 2
    assert [runs_of(setting, seed) for seed in (1, 2)] == runs
    assert [(log_dir / "summary.json").stat().st_mtime_ns for (log_dir,) in runs] == written


def test_a_stopped_sweep_is_resumed_where_it_was(base, capsys):
    keys = {"env_id": "slow_toys:toy/SlowPendulum-v0", "running_steps": 2048, "eval_interval": 2048, "n_epochs": 1}
    argv = [base(**keys, checkpoint_interval=128), "--seeds", "2", "--jobs", "2", "-o", "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "xcfast.sweep", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TOY_SLEEP": "0.005"},  # ten seconds a job, and nearly none of the CPU's
    )
    deadline = time.monotonic() + 60
    while len({path.parent for path in Path("out").glob("all/models/*/seed_*/checkpoint_*.pth")}) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "out is in use" in error and re.search(rf"processes (\d+, )*{process.pid}\b", error)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    out, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, error
    assert out.count(": stopped\n") == 2 and "stopped; the same command continues" in out
    assert [row["seeds"] for row in table()] == ["0"]
    stopped = [runs_of("out/all", seed) for seed in (1, 2)]
    for (folder,) in stopped:
        summary = json.loads((folder / "summary.json").read_text())
        assert 0 < summary["steps"] < 2048  # it had saved, at the end of an iteration

    assert main([*argv, "--seeds", "1,"]) == 0
    assert [runs_of("out/all", seed) for seed in (1, 2)] == stopped  # no run was started anew
    assert [row["seeds"] for row in table()] == ["1"]
    alone = {**SMALL, **keys, "seed": 1, "env_seed": 1, "log_dir": "alone", "model_dir": "alone"}
    uninterrupted = Path(run(load_config(overrides=alone), quiet=True).model_dir)
    (resumed,) = Path("out/all/models").glob("*/seed_1_*")
    one, other = (ckpt.load_checkpoint(folder / ckpt.FINAL_MODEL)["policy"] for folder in (uninterrupted, resumed))
    assert all((one[key] == other[key]).all() for key in one)


def test_a_study_searches_and_is_continued(base, capsys):
    argv = [base(), "--seeds", "1", "-o", "out", "--search", "learning_rate=1e-5:1e-2:log", "--search", "n_epochs=1:3"]
    argv += ["--search", "actor_hidden_size=[8],[16, 8]"]
    assert main([*argv, "--study", "1"]) == 0
    first = {row["setting"]: row for row in table()}
    assert set(first) == {"trial_000"}
    assert main([*argv, "--study", "2"]) == 0
    rows = table()
    assert {row["setting"] for row in rows} == {"trial_000", "trial_001"}
    assert all(row == first[row["setting"]] for row in rows if row["setting"] in first)
    scores = [float(row["final_mean"]) for row in rows]
    assert scores == sorted(scores, reverse=True)  # the best trial first
    assert len({row["learning_rate"] for row in rows}) == 2
    for row in rows:
        config = load_config(Path("out") / row["setting"] / "config.json")
        assert 1e-5 <= config.learning_rate <= 1e-2 and config.n_epochs in (1, 2, 3)
        assert config.actor_hidden_size in ((8,), (16, 8))
        assert row["learning_rate"] == str(config.learning_rate)
    printed = capsys.readouterr().out
    assert printed.count("finished before") == 1

    import optuna

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("out/study.log"))
    study = optuna.load_study(study_name="sweep", storage=storage)
    assert study.best_value == scores[0]
    assert main([*argv[:-2], "--study", "4"]) == 2  # other keys than the study's
    assert "the study there searches" in capsys.readouterr().err


class Trial:
    """Stands for a setting: what a study gets to see of it."""

    def __init__(self, values, number, scores=()):
        self.name, self.values = f"trial_{number:03d}", dict(values)
        self.jobs, self._scores = [1, 2], scores

    def scores(self, key):
        return np.array(self._scores)


def test_interrupted_trials_come_again_and_failed_ones_do_not(tmp_path, capsys):
    from xcfast.sweep.study import Study

    def make(values, number):
        if number == 1:
            raise ConfigError("n_minibatch is too large")
        return Trial(values, number, {0: [1.0, 3.0], 2: [5.0]}.get(number, []))

    def study(trials=5, choices=("relu", "tanh")):
        return Study(tmp_path / "study.log", trials, {"gamma": (0.9, 1.0, False), "activation": list(choices)})

    first = study()
    settings = first.settings(make)
    trials = [next(settings) for _ in range(3)]  # as if stopped then
    assert [trial.name for trial in trials] == ["trial_000", "trial_002", "trial_003"]
    assert "trial 1 " in capsys.readouterr().err
    first.ended(trials[0])
    first.ended(trials[1])  # one of its two seeds failed

    again = list(study().settings(make))
    assert [trial.name for trial in again] == ["trial_000", "trial_003", "trial_004"]
    assert [trial.values for trial in again[:2]] == [trials[0].values, trials[2].values]
    assert len({trial.values["gamma"] for trial in (*trials, *again)}) == 4

    import optuna

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log")))
    found = optuna.load_study(study_name="sweep", storage=storage).trials
    assert [trial.state.name for trial in found] == ["COMPLETE", "FAIL", "FAIL", "RUNNING", "RUNNING"]
    assert found[0].value == 2.0
    with pytest.raises(ConfigError, match=r"activation: other choices; given: relu,elu"):
        study(6, ("relu", "elu"))


@pytest.mark.parametrize(
    ("key", "before", "after", "words"),
    [
        ("activation", "relu,tanh", "tanh,elu", r"activation: .*given: tanh,elu; allowed: relu,tanh, as in"),
        ("learning_rate", "1e-4:1e-2:log", "0.0001,0.001", r"given: 0.0001,0.001; allowed: 0.0001:0.01:log, as in"),
        ("learning_rate", "1e-4:1e-2:log", "1e-4:1e-2", r"given: 0.0001:0.01.*allowed: 0.0001:0.01:log, as in"),
        ("n_epochs", "1,2", "1:2", r"given: 1:2.*allowed: 1,2, as in"),
    ],
)
def test_a_study_with_other_choices_is_refused_before_a_trial(base, capsys, key, before, after, words):
    from xcfast.sweep.study import Study

    Path("out").mkdir()
    study = Study(Path("out/study.log"), 1, search_space([f"{key}={before}"]))
    list(study.settings(lambda values, number: Trial(values, number)))  # and interrupted
    assert main([base(), "--seeds", "1", "-o", "out", "--search", f"{key}={after}", "--study", "2"]) == 2
    told = capsys.readouterr()
    assert re.search(words, told.err) and told.err.count("\n") == 1 and told.out == ""
    assert not list(Path("out").glob("trial_*"))


def test_the_bounds_of_a_study_may_change(tmp_path):
    from xcfast.sweep.study import Study

    for trials, high in ((1, 0.95), (2, 1.0)):
        study = Study(tmp_path / "study.log", trials, {"gamma": (0.9, high, False)})
        settings = list(study.settings(lambda values, number: Trial(values, number)))
    assert len(settings) == 2


@dataclass(frozen=True)
class FakeJob:
    """Prints its CPUs, and waits until as many others of its kind have begun."""

    folder: Path
    seed: int
    together: int
    name = "fake"

    @property
    def log(self):
        return self.folder / f"{self.seed}.log"

    def summary(self):
        return {} if self.log.is_file() and "done" in self.log.read_text() else None

    def command(self):
        code = (
            "import glob, os, time\n"
            "print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])\n"
            f"while len(glob.glob({str(self.folder / '*.log')!r})) < {self.together}: time.sleep(0.01)\n"
            "print('done')\n"
        )
        return [sys.executable, "-c", code]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is Linux's")
def test_every_job_has_cpus_of_its_own(tmp_path):
    usable = sorted(os.sched_getaffinity(0))
    jobs = [FakeJob(tmp_path, seed, len(usable)) for seed in range(len(usable))]
    with StopRequest() as stop, Slots(None, 1, (), stop) as slots:
        if slots.size == len(usable):  # no cgroup allows less
            for job in jobs:
                slots.start(job)
            assert slots.free == 0
            assert all(slots.wait()[1] is None for _ in jobs)
            lines = [job.log.read_text().splitlines()[0] for job in jobs]
            assert sorted(lines) == sorted(f"[{cpu}] 1" for cpu in usable)
    assert sorted(os.sched_getaffinity(0)) == usable


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is Linux's")
@pytest.mark.parametrize(
    ("cpus", "num_jobs", "threads", "own"), [(4, 1, 1, 0), (4, 2, 1, 0), (4, 2, 2, 2), (2, 3, 1, 1)]
)
def test_jobs_have_cpus_of_their_own_only_where_they_take_all(tmp_path, monkeypatch, cpus, num_jobs, threads, own):
    """Two sweeps of one job each would otherwise meet on the first CPU."""
    asked = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, chosen: asked.append(sorted(chosen)))
    with StopRequest() as stop, Slots(num_jobs, threads, (), stop):
        pass
    assert [len(chosen) for chosen in asked] == [own] * (num_jobs if own else 0)
    assert {cpu for chosen in asked for cpu in chosen} == set(range(cpus if own else 0))


# Command lines


def test_points_of_a_grid():
    assert grid_points([]) == [{}]
    points = grid_points(["n_epochs=1,2", "actor_hidden_size=[8],[8, 8]"])
    assert len(points) == 4 and points[1] == {"n_epochs": 1, "actor_hidden_size": [8, 8]}


def test_ranges_and_choices_of_a_search():
    space = search_space(["learning_rate=1e-5:1e-2:log", "n_epochs=1:20", "activation=relu,tanh"])
    assert space == {"learning_rate": (1e-5, 1e-2, True), "n_epochs": (1, 20, False), "activation": ["relu", "tanh"]}


@pytest.mark.parametrize(
    "text",
    [
        "n_epochs=1.5:3",
        "gamma=0.9:0.5",
        "gamma=0:1:log",
        "gamma=0:1:lin",
        "gamma=a:b",
        "activation=0:1",
        "gama=0:1",
        "gama=1,2",
        "num_threads=1:2",
        "seed=1,2",
        "gamma=",
    ],
)
def test_what_is_no_search_is_an_error(text):
    with pytest.raises(ConfigError, match=text.partition("=")[0]):
        search_space([text])


@pytest.mark.parametrize(("text", "seeds"), [("3", [1, 2, 3]), ("7,3", [7, 3]), ("7,", [7])])
def test_seeds(text, seeds):
    assert seeds_of(text) == seeds


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        (["{base}", "gama=1"], "gama"),
        (["{base}", "log_dir=x"], "log_dir: a sweep sets it itself; use -o"),
        (["{base}", "--grid", "env_seed=1,2"], "env_seed: a sweep sets it itself; use --seeds"),
        (["{base}", "--grid", "gamma=0.9,2"], "gamma"),
        (["{base}", "--grid", "gamma"], "gamma"),
    ],
)
def test_a_bad_command_starts_nothing(base, argv, words, capsys):
    assert main([word.format(base=base()) for word in argv]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list(Path().glob("sweeps/*/*/logs"))


@pytest.mark.parametrize(
    "argv",
    [
        ["--seeds", "0"],
        ["--seeds", "1,1"],
        ["--seeds", "x"],
        ["--jobs", "0"],
        ["--study", "2"],
        ["--search", "gamma=0:1"],
    ],
)
def test_a_command_line_that_cannot_be_parsed(base, argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([base(), *argv])
    assert stopped.value.code == 2 and argv[0] in capsys.readouterr().err


def test_another_sweep_in_the_same_folder_is_refused(base, capsys):
    Path("out").mkdir()
    descriptor = os.open("out/.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert main([base(), "--seeds", "1", "-o", "out"]) == 2
    assert "out is in use" in capsys.readouterr().err
    os.close(descriptor)
    (Path("out") / "all").mkdir()
    for change, words in (({"gamma": 0.5}, "gamma 0.5 -> 0.99"), ({"precision": "auto"}, "precision 'auto' -> 'fp32'")):
        (Path("out") / "all" / "config.json").write_text(json.dumps(load_config("base.yaml", change).to_dict()))
        assert main(["base.yaml", "--seeds", "1", "-o", "out"]) == 2
        assert f"out/all holds jobs with other settings ({words}); give another -o" in capsys.readouterr().err


def test_without_optuna_it_says_what_to_install(base, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "xcfast.sweep.study", raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main([base(), "--study", "1", "--search", "gamma=0.9:1"]) == 2
    assert capsys.readouterr().err == 'xcfast.sweep: optuna is missing; pip install "xcfast[sweep]"\n'


def test_an_env_id_stands_for_the_shipped_file(base, monkeypatch):
    base()
    seen = []
    monkeypatch.setattr("xcfast.sweep.command._run", lambda settings, *rest: (seen.extend(settings), (seen, 0))[1])
    assert main(["Hopper-v5", "--seeds", "1"]) == 0
    assert seen[0].config.env_id == "Hopper-v5" and (Path("sweeps") / "Hopper-v5" / "all" / "config.json").is_file()


def test_points_that_are_equal_are_one_setting(base, monkeypatch, capsys):
    base()
    seen = []
    monkeypatch.setattr("xcfast.sweep.command._run", lambda settings, *rest: (seen.extend(settings), (seen, 0))[1])
    assert main(["base.yaml", "--seeds", "1", "--grid", "learning_rate=1e-3,0.001,2e-3"]) == 0
    assert [setting.values["learning_rate"] for setting in seen] == [0.001, 0.002]
    assert "learning_rate=0.001: named twice, trained once" in capsys.readouterr().out
    assert main(["base.yaml", "--seeds", "1", "--grid", "n_epochs=1", "--grid", "n_epochs=2"]) == 2
    assert "n_epochs: given twice" in capsys.readouterr().err


def test_a_grid_over_an_argument_of_the_environment(base, monkeypatch):
    base(env_kwargs={"frame_skip": 2})
    seen = []
    monkeypatch.setattr("xcfast.sweep.command._run", lambda settings, *rest: (seen.extend(settings), (seen, 0))[1])
    assert main(["base.yaml", "--seeds", "1", "--grid", "env_kwargs.reset_noise_scale=0.1,0.2,2e-1"]) == 0
    assert [setting.values for setting in seen] == [{"env_kwargs.reset_noise_scale": scale} for scale in (0.1, 0.2)]
    assert seen[1].config.env_kwargs == {"frame_skip": 2, "reset_noise_scale": 0.2}


def test_a_grid_over_a_key_without_effect_is_refused(base, capsys):
    base()
    assert main(["base.yaml", "--seeds", "1", "--grid", "use_tensor_memory=True,False"]) == 2
    assert "use_tensor_memory: has no effect: the engines decide" in capsys.readouterr().err


def test_a_search_over_an_argument_of_the_environment():
    assert search_space(["env_kwargs.reset_noise_scale=0.1:0.2"]) == {"env_kwargs.reset_noise_scale": (0.1, 0.2, False)}


def test_a_tilde_in_the_output_is_the_home_folder(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    argv = [base(running_steps=0), "--seeds", "1", "-o", "~/out"]
    assert main(argv) == 2  # before anything is made
    base()
    (tmp_path / "out").mkdir()
    lock = os.open(tmp_path / "out" / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert main(argv) == 2
    assert f"{tmp_path / 'out'} is in use" in capsys.readouterr().err
    os.close(lock)
