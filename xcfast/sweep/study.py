"""An Optuna study over YAML keys, kept in a file so that it can be continued."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from xcfast.config import ConfigError
from xcfast.config.schema import hints
from xcfast.sweep.space import Range

if TYPE_CHECKING:
    from xcfast.sweep.setting import Setting


class Study:
    """An Optuna study whose trials are settings of a sweep. A trial's value is its mean final score over the seeds.

    Args:
        path: Journal file of the study. A study in it is continued.
        trials: Number of trials in all.
        space: Key -> choices or range.

    Raises:
        ConfigError: The study in the file has other keys, or other kinds of values for one of them.
    """

    def __init__(self, path: Path, trials: int, space: Mapping[str, list[Any] | Range]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._trials = trials
        self._space = {key: _distribution(key, values) for key, values in space.items()}
        storage = JournalStorage(JournalFileBackend(str(path)))
        self._study = optuna.create_study(
            storage=storage, study_name="sweep", direction="maximize", load_if_exists=True
        )
        there = self._study.get_trials(deepcopy=False)
        _check_space(self._space, there)
        # The seed depends on the number of trials so far, so that a continued study does not repeat its first draws.
        self._study.sampler = optuna.samplers.TPESampler(seed=len(there), constant_liar=True)

    def settings(self, make: Callable[[Mapping[str, Any], int | None], Setting]) -> Iterator[Setting]:
        """Yields the trials of the journal, interrupted ones included, then new ones."""
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state in (TrialState.RUNNING, TrialState.COMPLETE):
                yield from self._setting(trial.number, trial.params, make)
        while len(self._study.get_trials(deepcopy=False)) < self._trials:
            new = self._study.ask(self._space)
            yield from self._setting(new.number, new.params, make)

    def ended(self, setting: Setting) -> None:
        """Notes a trial's value. A trial with a failed seed has none."""
        scores = setting.scores("final_mean")
        complete = len(scores) == len(setting.jobs)
        self._tell(int(setting.name.removeprefix("trial_")), float(scores.mean()) if complete else None)

    def _tell(self, number: int, value: float | None) -> None:
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        self._study.tell(number, value, state=state, skip_if_finished=True)

    def _setting(
        self, number: int, params: Mapping[str, Any], make: Callable[[Mapping[str, Any], int | None], Setting]
    ) -> Iterator[Setting]:
        """Yields the trial as a setting, or marks it as failed if its values are not valid together."""
        values = {key: json.loads(value) if isinstance(value, str) else value for key, value in params.items()}
        try:
            if set(values) != set(self._space):
                raise ConfigError("was interrupted before all its values were drawn")
            setting = make(values, number)
        except ConfigError as error:
            print(f"trial {number} {values}: {error}", file=sys.stderr)
            self._tell(number, None)
        else:
            yield setting


def _distribution(key: str, values: list[Any] | Range) -> BaseDistribution:
    if isinstance(values, tuple):
        low, high, log = values
        return (
            IntDistribution(int(low), int(high), log) if hints().get(key) is int else FloatDistribution(low, high, log)
        )
    return CategoricalDistribution([json.dumps(value) for value in values])  # as text: a choice may be a list


def _check_space(space: Mapping[str, BaseDistribution], trials: list[optuna.trial.FrozenTrial]) -> None:
    """Checks that a study is continued over the same keys and choices. The bounds of a range may change."""
    known = {key for trial in trials for key in trial.params}
    if known and known != set(space):
        raise ConfigError(
            f"the study there searches {', '.join(sorted(known))}; give another -o",
            key="--search",
            given=", ".join(sorted(space)),
            where="command line",
        )
    for trial in trials:
        for key, there in trial.distributions.items():
            try:
                check_distribution_compatibility(there, space[key])
            except ValueError:
                allowed = f"{_text(there)}, as in the study there, or another -o"
                raise ConfigError(
                    "other choices", key=key, given=_text(space[key]), allowed=allowed, where="command line"
                ) from None


def _text(distribution: BaseDistribution) -> str:
    """Returns a distribution as it is written on the command line."""
    if isinstance(distribution, CategoricalDistribution):
        values = [json.loads(str(choice)) for choice in distribution.choices]
        return ",".join(value if isinstance(value, str) else json.dumps(value) for value in values)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return f"{distribution.low:g}:{distribution.high:g}{':log' if distribution.log else ''}"
