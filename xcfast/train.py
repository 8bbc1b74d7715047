"""The command line: `python -m xcfast.train [CONFIG] [key=value ...]`, from a configuration to a finished run.

Nothing heavy is imported before the configuration has been checked.
"""

import argparse
import gc
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xcfast.config.keys import RENAMED_KEYS, keys_of
from xcfast.config.loading import load_config
from xcfast.config.schema import RESUMABLE_KEYS, TESTABLE_KEYS, Config
from xcfast.config.shipped import file_and_env_id, shipped_config, shipped_configs
from xcfast.config.trust import allow_modules
from xcfast.config.yaml_file import read_overrides
from xcfast.errors import CheckpointError, ConfigError
from xcfast.output.files import user_path
from xcfast.resources import launched

if TYPE_CHECKING:
    from xcfast.output.folders import RunFolders

Mode = Literal["benchmark", "train", "test"]

_FAMILIES = {"mujoco": "MuJoCo", "classic_control": "Classic Control", "box2d": "Box2D"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        Exit status: 0 if the run is done, or stopped and saved; 1 if it failed; 2 if the configuration is bad.

    Raises:
        SystemExit: With status 2 if the arguments cannot be parsed, 0 after --help and --version.
    """
    if argv is None:
        _prepare_process()
    parser = _parser()
    args, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        parser.error(_unknown_arguments(unknown))
    try:
        word, overrides = _split_positionals(args.config, args.config_path)
        path, env_id = (None, None) if word is None else file_and_env_id(word)
        if env_id is not None:
            if args.env_id not in (None, env_id):
                raise ConfigError("two env ids", given=f"{env_id}, {args.env_id}", where="command line")
            args.env_id, path = env_id, None
        if not (path or args.env_id or args.resume):
            parser.error("nothing to train: give CONFIG (a YAML file), --env-id or --resume")
        config = _build_config(args, path, overrides)
        mode, remark = choose_mode(args.benchmark, args.test, config)
        if args.resume and args.benchmark is args.test is None:
            mode = _find_run(args.resume).mode
    except (ConfigError, CheckpointError) as error:
        return _bad_config(error)
    if _rank() == 0:
        for line in (*config.notices, *remark):
            print(line, file=sys.stderr)
    elif mode == "test":
        return 0  # rank 0 does it
    if argv is None:
        _import_engines()
    return _execute(config, mode, args)


def _import_engines() -> None:
    """Imports the modules of a run, and exempts them from garbage collection.

    Modules are never garbage, but there are hundreds of thousands of objects in them. The collector would look through
    these several times: while they are imported, during the run, and at its end.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        import xcfast.runs.run  # noqa: F401
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def _execute(config: Config, mode: Mode, args: argparse.Namespace) -> int:
    from xcfast.envs import EnvError, WorkerError
    from xcfast.errors import RunFailed
    from xcfast.runs.run import run
    from xcfast.runs.start_table import describe

    try:
        if args.dry_run:
            table = describe(config, mode)
            _print_to_pipe(f"{_resolved(config)}\n{table}")
        else:
            run(config, mode=mode, resume=args.resume)
    except (ConfigError, EnvError, CheckpointError) as error:  # it names something that does not exist or fit
        return _bad_config(error)
    except (RunFailed, WorkerError) as error:
        if isinstance(error, RunFailed) and not error.expected:
            traceback.print_exception(error.__cause__)
        if _rank() == 0 or not (isinstance(error, RunFailed) and error.known):
            print(f"xcfast: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("xcfast: interrupted", file=sys.stderr)
        return 1
    return 0


def _prepare_process() -> None:
    """Lets the installed command find modules in the working folder, and print any text on any terminal."""
    if not getattr(sys.flags, "safe_path", False) and not {"", os.getcwd()} & set(
        sys.path
    ):  # python -m has put the folder there
        sys.path.append(os.getcwd())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _unknown_arguments(words: Sequence[str]) -> str:
    """Returns the error for arguments that are not flags, with a hint if they are keys of the configuration."""
    for word in words:
        name, _, value = word.partition("=")
        key = name.lstrip("-").replace("-", "_")
        if name.startswith("--") and (key in keys_of(Config) or key in RENAMED_KEYS):
            return f"unrecognized argument {name}; a key of the configuration is set by {key}={value or 'VALUE'}"
    return f"unrecognized arguments: {' '.join(words)}"


def _rank() -> int:
    """Returns this process's number under torchrun, else 0."""
    return int(os.environ["RANK"]) if launched() else 0


def choose_mode(benchmark: int | None, test: int | None, config: Config) -> tuple[Mode, tuple[str, ...]]:
    """Returns the mode by XuanCe's rule: benchmark is the default and wins over test.

    Args:
        benchmark: The value of `--benchmark`, or None if it is not given.
        test: The value of `--test`, or None if it is not given.
        config: The configuration, whose `test_mode` decides if the flags do not.

    Returns:
        The mode, and lines to show.
    """
    if benchmark == 0:
        testing = config.test_mode if test is None else test == 1
        return ("test" if testing else "train"), ()
    if benchmark == 1 or config.default_mode == "benchmark":
        remark = "--test 1 has no effect: benchmark is the default and wins; add --benchmark 0 to test a saved model"
        return "benchmark", ((remark,) if test == 1 else ())
    return ("benchmark" if test == 0 else "test"), ()


def _build_config(args: argparse.Namespace, path: str | Path | None, overrides: list[str]) -> Config:
    flags: dict[str, Any] = {}
    if args.seed is not None:
        flags |= {"seed": args.seed, "env_seed": args.seed}
    if args.device is not None:
        flags["device"] = args.device
    if args.method == "ppo_kl":
        flags["agent"] = "PPO_KL"
    typed = read_overrides(overrides)  # these win over what a flag says about the same key
    flags = {name: value for name, value in flags.items() if name not in typed}
    if args.resume is not None:
        return _resumed_config(args, path, flags, overrides)

    remarks: tuple[str, ...] = ()
    family = _FAMILIES[args.env] if args.env and "env_name" not in typed else None
    env_id = str(typed["env_id"][0]) if "env_id" in typed else args.env_id
    if env_id is not None:
        flags["env_id"] = env_id
    if path is not None and family is not None:
        flags["env_name"] = family
    if path is None:
        path = shipped_config(env_id)
        if path is None:
            names = ", ".join(shipped_configs())
            remarks = (f"no configuration is shipped for {env_id} (shipped: {names}); using the defaults",)
            flags |= {"env_name": family or "Gymnasium"}
    config = load_config(path, [*_as_overrides(flags), *overrides])
    if family is not None and config.env_name != family:
        raise ConfigError(
            f"does not fit {config.env_id}, whose env_name is {config.env_name}",
            key="--env",
            given=args.env,
            where="command line",
        )
    return replace(config, notices=remarks + config.notices)


def _as_overrides(flags: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in flags.items()]


def _resumed_config(
    args: argparse.Namespace, path: str | Path | None, flags: dict[str, Any], overrides: Sequence[str]
) -> Config:
    """Returns the configuration of the run that is continued, with the overrides of keys that may change.

    Raises:
        ConfigError: If the command line changes another key, or does not allow a module that the run needs.
        CheckpointError: If there is no such run folder.
    """
    if path is not None or args.env_id is not None:
        raise ConfigError(
            "takes the configuration from the run; CONFIG and --env-id do not go with it",
            key="--resume",
            given=str(args.resume),
            where="command line",
        )
    allowed = (*RESUMABLE_KEYS, *(TESTABLE_KEYS if args.benchmark == 0 and args.test == 1 else ()))
    for name in (*flags, *read_overrides(overrides)):
        if name not in allowed:
            raise ConfigError(
                "cannot change when a run is resumed", key=name, allowed=", ".join(allowed), where="command line"
            )
    file = _find_run(args.resume).log_dir / "config.json"
    config = load_config(file, [*_as_overrides(flags), *overrides])
    return allow_modules(
        config, args.allow_module, lambda modules: " ".join(f"--allow-module {module}" for module in modules)
    )


def _find_run(path: Path) -> "RunFolders":
    from xcfast.output.folders import RunFolders

    return RunFolders.find(path)


def _split_positionals(words: Sequence[str], config_path: str | None) -> tuple[str | None, list[str]]:
    """Returns CONFIG (or None) and the `key=value` overrides, whose keys may be written with dashes, as flags are."""
    paths, overrides = [config_path] if config_path else [], []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and re.fullmatch(r"\w[\w-]*(\.[\w.]*)?\s*", name):
            overrides.append(f"{name.replace('-', '_')}={value}")
        else:
            paths.append(word)
    if len(paths) > 1:
        raise ConfigError(
            "more than one configuration file",
            given=", ".join(paths),
            allowed="one, then key=value",
            where="command line",
        )
    return (paths[0] if paths else None), overrides


def _bad_config(error: Exception) -> int:
    print(f"xcfast: {error}", file=sys.stderr)
    return 2


def _print_to_pipe(text: str) -> None:
    """Prints a text to stdout, whose reader may have left early, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the interpreter flushes once more as it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _resolved(config: Config) -> str:
    import yaml

    return yaml.safe_dump(config.to_dict(), sort_keys=False, default_flow_style=None).rstrip()


def _algorithm(name: str) -> str:
    if name.lower() in ("ppo", "ppo_clip", "ppoclip"):
        return "ppo"
    if name.lower() in ("ppo_kl", "ppokl"):
        return "ppo_kl"
    raise argparse.ArgumentTypeError(f"{name!r} is not available; allowed: ppo, ppo_kl")


def _parser() -> argparse.ArgumentParser:
    from xcfast import __version__

    parser = argparse.ArgumentParser(
        prog="python -m xcfast.train",
        description="Train PPO as a YAML file says.",
        epilog="Keys of the YAML: python -m xcfast.config. Modes: benchmark (the default) trains and evaluates, "
        "--benchmark 0 trains only, --benchmark 0 --test 1 tests a saved model.",
    )
    add = parser.add_argument
    add("config", nargs="*", metavar="CONFIG | key=value", help="a YAML file, or an env id; then keys that override it")
    add("--config-path", metavar="FILE", help="the same as CONFIG")
    add("--method", "--algo", type=_algorithm, default="ppo", help="ppo, or ppo_kl: the same as agent=PPO_KL")
    add("--env", choices=sorted(_FAMILIES), help="family of the task")
    add("--env-id", metavar="ID", help="Gymnasium id; without CONFIG it finds the shipped configuration")
    add("--test", type=int, choices=(0, 1), help="with --benchmark 0: test a saved model")
    add("--benchmark", type=int, choices=(0, 1), help="train with evaluations (default 1); wins over --test")
    add("--seed", type=int, metavar="N", help="sets seed and env_seed")
    add("--device", help="cpu, cuda, cuda:K or auto")
    add("--resume", type=user_path, metavar="RUN_DIR", help="continue the run in this folder")
    add(
        "--allow-module",
        action="append",
        default=[],
        metavar="NAME",
        help="with --resume: a module that the run's environment may import; may be repeated",
    )
    add("--dry-run", action="store_true", help="print the resolved configuration and what would run, then exit")
    add("--version", action="version", version=f"xcfast {__version__}")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
