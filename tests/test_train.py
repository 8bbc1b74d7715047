"""The command line: which configuration and mode it makes of its arguments, and how it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xcfast.config import Config, ConfigError
from xcfast.envs import EnvError, WorkerError
from xcfast.errors import CheckpointError, RunFailed
from xcfast.output.folders import RunFolders
from xcfast.train import choose_mode, main

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "tests" / "data" / "xuance_tutorial.yaml"


class FakeTrainer:
    """Stands for xcfast.run and the start table: records the calls, raises what it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[Config, str, Path | None]] = []
        self.error: BaseException | None = None

    def run(self, config: Config, mode: str = "benchmark", resume: Path | None = None) -> None:
        self.calls.append((config, mode, resume))
        if self.error is not None:
            raise self.error

    def describe(self, config: Config, mode: str) -> str:
        return f"{mode} of {config.env_id}"


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> FakeTrainer:
    fake = FakeTrainer()
    monkeypatch.setattr("xcfast.runs.run.run", fake.run)
    monkeypatch.setattr("xcfast.runs.start_table.describe", fake.describe)
    return fake


def config_of(trainer: FakeTrainer, *argv: str) -> Config:
    assert main(argv) == 0
    return trainer.calls[-1][0]


# Which configuration


def test_a_file_and_overrides(trainer: FakeTrainer) -> None:
    config = config_of(trainer, str(TUTORIAL), "running_steps=1e5", "--device", "cpu", "representation_hidden_size=[8]")
    assert config.running_steps == 100_000
    assert config.representation_hidden_size == (8,)
    assert config.device == "cpu"
    assert trainer.calls[-1][1:] == ("benchmark", None)


def test_config_path_is_the_same_as_config(trainer: FakeTrainer) -> None:
    assert config_of(trainer, "--config-path", str(TUTORIAL), "--device", "cpu") == config_of(
        trainer, str(TUTORIAL), "--device", "cpu"
    )


def test_the_flags_of_xuance_scripts(trainer: FakeTrainer) -> None:
    argv = "--method ppo --env mujoco --env-id Ant-v4 --test 0 --benchmark 1".split()
    config = config_of(trainer, *argv)
    assert (config.env_id, config.eval_interval) == ("Ant-v4", 50_000)
    assert Path(config.source).name == "ant.yaml"


def test_the_algorithm_may_be_a_flag(trainer: FakeTrainer) -> None:
    assert config_of(trainer, "--env-id", "Ant-v4", "--method", "ppo_kl").agent == "PPO_KL"
    assert config_of(trainer, "--env-id", "Ant-v4", "--method", "ppo_kl", "agent=PPO").agent == "PPO"
    assert config_of(trainer, "--env-id", "Ant-v4", "--method", "ppo").agent == "PPO"


@pytest.mark.parametrize(
    ("argv", "file", "env_id"),
    [
        ("--env-id Ant-v5", "ant.yaml", "Ant-v5"),
        ("--algo PPO --env classic_control --env-id CartPole-v0", "cartpole.yaml", "CartPole-v0"),
        ("--env box2d --env-id LunarLander-v2", "lunar_lander.yaml", "LunarLander-v2"),
        ("Hopper-v5 seed=3", "hopper.yaml", "Hopper-v5"),
        ("MountainCar-v0 --env-id MountainCar-v0", "mountain_car.yaml", "MountainCar-v0"),
    ],
)
def test_an_env_id_finds_the_shipped_file(trainer: FakeTrainer, argv: str, file: str, env_id: str) -> None:
    config = config_of(trainer, *argv.split())
    assert (Path(config.source).name, config.env_id) == (file, env_id)


def test_a_module_and_id_need_no_file(trainer: FakeTrainer) -> None:
    config = config_of(trainer, "weird:Base-v0", "n_epochs=3")
    assert (config.env_id, config.n_epochs, config.source) == ("weird:Base-v0", 3, "")


def test_the_name_of_a_shipped_file_is_enough(trainer: FakeTrainer) -> None:
    assert Path(config_of(trainer, "hopper").source).name == "hopper.yaml"


def test_arguments_of_the_environment(trainer: FakeTrainer) -> None:
    config = config_of(trainer, "Ant-v5", "env_kwargs.reset_noise_scale=0.2", "env_kwargs.camera_name=track")
    assert config.env_kwargs == {"reset_noise_scale": 0.2, "camera_name": "track"}


def test_env_labels_a_file_of_ones_own(trainer: FakeTrainer, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("env_id: CartPole-v1\npolicy: Categorical_AC\n")
    config = config_of(trainer, str(tmp_path / "my.yaml"), "--env", "classic_control")
    assert (config.env_id, config.env_name) == ("CartPole-v1", "Classic Control")


def test_an_env_id_without_a_file_gets_the_defaults_and_a_notice(
    trainer: FakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(trainer, "--env-id", "Blackjack-v1", "--env", "classic_control")
    assert config.to_dict() == Config(env_id="Blackjack-v1", env_name="Classic Control").to_dict()
    assert "no configuration is shipped for Blackjack-v1" in capsys.readouterr().err


def test_seed_sets_both_seeds_and_overrides_win(trainer: FakeTrainer) -> None:
    config = config_of(trainer, "--env-id", "Ant-v4", "--seed", "7")
    assert (config.seed, config.env_seed) == (7, 7)
    config = config_of(trainer, "--env-id", "Ant-v4", "--seed", "7", "env_seed=9")
    assert (config.seed, config.env_seed) == (7, 9)


@pytest.mark.parametrize(
    ("argv", "env_id", "env_name"),
    [
        ("--env-id my:env-v0 env_name=Gymnasium", "my:env-v0", "Gymnasium"),
        ("--env-id my:env-v0 --env box2d env_name=MuJoCo", "my:env-v0", "MuJoCo"),
        (f"{TUTORIAL} --env box2d env_name=MuJoCo", "Ant-v4", "MuJoCo"),
        ("--env-id Hopper-v4 env_id=Ant-v5", "Ant-v5", "MuJoCo"),
    ],
)
def test_what_is_typed_wins_over_what_a_flag_says(trainer: FakeTrainer, argv: str, env_id: str, env_name: str) -> None:
    config = config_of(trainer, *argv.split())
    assert (config.env_id, config.env_name) == (env_id, env_name)


def test_keys_may_have_dashes_and_the_last_one_wins(trainer: FakeTrainer) -> None:
    config = config_of(trainer, "--env-id", "Ant-v4", "running-steps=20000", "running_steps=30000", "n-epochs=3")
    assert (config.running_steps, config.n_epochs) == (30_000, 3)


def test_notices_are_shown(trainer: FakeTrainer, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(TUTORIAL), "--device", "cpu"])
    err = capsys.readouterr().err
    assert "clip_type has no effect" in err
    assert "PPO_Clip is PPO" in err


# Which mode


@pytest.mark.parametrize(
    ("benchmark_flag", "test_flag", "test_mode", "mode", "remarks"),
    [
        (None, None, False, "benchmark", 0),
        (1, None, False, "benchmark", 0),
        (1, 0, False, "benchmark", 0),
        (1, 1, False, "benchmark", 1),
        (None, 1, False, "benchmark", 1),
        (None, 0, False, "benchmark", 0),
        (0, None, False, "train", 0),
        (0, 0, False, "train", 0),
        (0, 1, False, "test", 0),
        (None, None, True, "test", 0),
        (None, 1, True, "test", 0),
        (None, 0, True, "benchmark", 0),
        (0, None, True, "test", 0),
        (0, 0, True, "train", 0),
        (1, None, True, "benchmark", 0),
    ],
)
def test_modes(benchmark_flag: int | None, test_flag: int | None, test_mode: bool, mode: str, remarks: int) -> None:
    chosen, said = choose_mode(benchmark_flag, test_flag, Config(test_mode=test_mode))
    assert chosen == mode
    assert len(said) == remarks


def test_flags_choose_the_mode(trainer: FakeTrainer, capsys: pytest.CaptureFixture[str]) -> None:
    main("--env-id Ant-v4 --benchmark 0 --test 1".split())
    main("--env-id Ant-v4 --benchmark 0".split())
    assert "--test" not in capsys.readouterr().err
    main("--env-id Ant-v4 --test 1".split())
    assert [call[1] for call in trainer.calls] == ["test", "train", "benchmark"]
    assert "add --benchmark 0" in capsys.readouterr().err


def test_dry_run_prints_the_configuration_and_what_would_run(
    trainer: FakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--env-id Ant-v4 gamma=0.5 --benchmark 0 --dry-run".split()) == 0
    out = capsys.readouterr().out
    assert "gamma: 0.5\n" in out
    assert "train of Ant-v4" in out
    assert trainer.calls == []


# Resuming


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The log folder of a run in train mode."""
    folders = {"log_dir": str(tmp_path / "logs"), "model_dir": str(tmp_path / "models")}
    config = Config(gamma=0.5, env_id="Hopper-v4", **folders)
    run = RunFolders.create(config, "train")
    (run.log_dir / "config.json").write_text(json.dumps(config.to_dict()))
    return run.log_dir


def test_resume_takes_the_configuration_of_the_run(trainer: FakeTrainer, run_dir: Path) -> None:
    config = config_of(trainer, "--resume", str(run_dir), "--device", "cpu", "num_threads=2", "logger=none")
    original = json.loads((run_dir / "config.json").read_text())
    assert config.to_dict() == {**original, "device": "cpu", "num_threads": 2, "logger": "none"}
    assert trainer.calls[-1][1:] == ("train", run_dir)
    assert config.notices == ()
    assert config_of(trainer, "--resume", str(run_dir), "--benchmark", "1").to_dict() == original
    assert trainer.calls[-1][1] == "benchmark"


def test_a_test_of_a_run_may_change_what_is_tested(trainer: FakeTrainer, run_dir: Path) -> None:
    argv = ("--resume", str(run_dir), "--benchmark", "0", "--test", "1", "test_episode=7", "render=True")
    config = config_of(trainer, *argv)
    assert (config.test_episode, config.render) == (7, True)
    assert trainer.calls[-1][1] == "test"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["gamma=0.9"],
            "gamma: cannot change when a run is resumed; allowed: device, running_steps, vectorize",
        ),
        (["--seed", "3"], "seed: cannot change"),
        (["--env-id", "Ant-v4"], "CONFIG and --env-id do not go with it"),
        ([str(TUTORIAL)], "CONFIG and --env-id do not go with it"),
    ],
)
def test_resume_refuses_another_run(
    trainer: FakeTrainer, run_dir: Path, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--resume", str(run_dir), *argv]) == 2
    assert words in capsys.readouterr().err
    assert trainer.calls == []


@pytest.fixture
def foreign_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log folder of a run whose environment needs two modules in the working folder."""
    for name in ("evil", "worse"):
        (tmp_path / f"{name}.py").write_text("open('executed', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    wrappers = ("worse:Wrapper", "gymnasium.wrappers:FlattenObservation")
    config = Config(env_id="evil:Env-v0", env_wrappers=wrappers, log_dir="logs", model_dir="models")
    run = RunFolders.create(config, "train")
    (run.log_dir / "config.json").write_text(json.dumps(config.to_dict()))
    return run.log_dir


@pytest.mark.parametrize("mode", [[], ["--benchmark", "0", "--test", "1"], ["--dry-run"]], ids=" ".join)
def test_modules_of_a_resumed_run_must_be_named(
    trainer: FakeTrainer, foreign_run: Path, mode: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    resume = ["--resume", str(foreign_run), *mode]
    assert main(resume) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json: its environment runs code of evil, worse; if you trust that code, add " in line
    assert line.endswith("--allow-module evil --allow-module worse")
    assert main([*resume, "--allow-module", "evil"]) == 2
    assert "runs code of worse; " in capsys.readouterr().err
    assert trainer.calls == []
    assert main([*resume, "--allow-module", "evil", "--allow-module=worse"]) == 0
    assert not Path("executed").exists()


def test_a_tilde_in_the_run_folder_is_the_home_folder(
    trainer: FakeTrainer, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(run_dir.parent))
    assert main([f"--resume=~/{run_dir.name}"]) == 0
    assert trainer.calls[-1][2] == run_dir


def test_resume_of_no_run(trainer: FakeTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", str(tmp_path / "gone")]) == 2
    assert f"{tmp_path / 'gone'}: no such run folder" in capsys.readouterr().err


# How it ends


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ConfigError("does not fit", key="policy"), 2, "xcfast: policy: does not fit"),
        (RunFailed("losses became NaN at step 4096"), 1, "xcfast: failed: losses became NaN at step 4096"),
        (EnvError("env_id 'Amt-v4' is not registered"), 2, "xcfast: env_id 'Amt-v4' is not registered"),
        (CheckpointError("c.pth: truncated"), 2, "xcfast: c.pth: truncated"),
        (WorkerError("env 3 raised ValueError"), 1, "xcfast: failed: env 3 raised ValueError"),
        (KeyboardInterrupt(), 1, "xcfast: interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_expected_failures_end_with_a_message(
    trainer: FakeTrainer, error: BaseException, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.error = error
    assert main(["--env-id", "Ant-v4"]) == status
    assert words in capsys.readouterr().err


def test_unexpected_failures_keep_their_traceback(trainer: FakeTrainer) -> None:
    trainer.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        main(["--env-id", "Ant-v4"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "nothing to train"),
        (["gamma=0.9"], "nothing to train"),
        (["a.yaml", "b.yaml"], "more than one configuration file; given: a.yaml, b.yaml"),
        (["gone.yaml"], "gone.yaml: no such file"),
        (["--env-id", "Ant-v4", "gama=0.9"], "command line: gama: unknown key"),
        (["--env-id", "Ant-v4", "--device", "tpu"], "command line: device: unknown device; given: tpu"),
        (["--env-id", "Ant-v4", "--seed", "-1"], "command line: seed: out of range; given: -1"),
        (
            ["--env-id", "Ant-v4", "--env", "box2d"],
            "--env: does not fit Ant-v4, whose env_name is MuJoCo; given: box2d",
        ),
        (["--env-id", "Ant-v4", "--env", "atari"], "invalid choice: 'atari'"),
        (["--env-id", "Ant-v4", "--method", "sac"], "'sac' is not available; allowed: ppo, ppo_kl"),
        (["--env-id", "Ant-v4", "--benchmark", "2"], "invalid choice: 2"),
        (["--env-id", "Ant-v4", "--sed", "2"], "unrecognized arguments: --sed"),
        (["Ant-v4", "--running-steps", "100"], "--running-steps; a key of the configuration is set by running_steps="),
        (["Ant-v4", "--n_steps=100"], "--n_steps; a key of the configuration is set by n_steps=100"),
    ],
)
def test_bad_arguments_end_with_status_2(
    trainer: FakeTrainer, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(argv)
    except SystemExit as exit:  # argparse's way
        status = exit.code  # type: ignore[assignment]
    assert status == 2
    assert words in capsys.readouterr().err
    assert trainer.calls == []


def test_a_bad_file_ends_the_process_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("gamma: 0.99\nhorizn_size: 8\n")
    command = [sys.executable, "-m", "xcfast.train", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"xcfast: {path}, line 2: horizn_size: unknown key")
    assert len(result.stderr.splitlines()) == 1


COMMAND = "import sys; sys.path[0] = '/'; from xcfast.train import main; sys.exit(main())"


def test_the_installed_command_finds_modules_in_the_working_folder(tmp_path: Path) -> None:
    """The installed command starts with its own folder on the path of imports, not with the working folder."""
    (tmp_path / "mine.py").write_text(
        "import gymnasium\ngymnasium.register('My-v0', 'gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    command = [sys.executable, "-c", COMMAND, "mine:My-v0", "policy=Gaussian_AC", "--dry-run"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "env_id: mine:My-v0" in result.stdout


def test_any_text_can_be_printed_on_an_ascii_terminal(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    folders = [f"log_dir={tmp_path}/训练", f"model_dir={tmp_path}/模型"]
    command = [sys.executable, "-m", "xcfast.train", "CartPole-v1", *folders, "--device", "cpu", "--dry-run"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from xcfast import __version__

    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"xcfast {__version__}\n"


def test_a_reader_that_leaves_early_ends_a_dry_run_quietly() -> None:
    command = [sys.executable, "-m", "xcfast.train", "CartPole-v1", "device=cpu", "--dry-run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 0, errors
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
    process.stderr.close()


def test_WORLD_SIZE_and_RANK_alone_make_no_rank(monkeypatch, tmp_path, capsys):
    """Some clusters set them; a test must not end in silence because of that."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    folders = [f"{key}={tmp_path}" for key in ("log_dir", "model_dir")]
    assert main(["--env-id", "Pendulum-v1", "--benchmark", "0", "--test", "1", *folders]) == 2
    assert "no " in capsys.readouterr().err
