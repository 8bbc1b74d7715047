"""The `compare` fixture: interleaved ratios, gates with slack, one table at the end of the run.

    def test_gae(compare):
        compare("gae", {"copy": copy, "xcfast": ours}, baseline="copy", kind="at_most", target=2.0, shape="256x16")

XCFAST_BENCH_STRICT=1 gates exactly at the target; XCFAST_BENCH_SMOKE=1 only runs everything once, without gates;
XCFAST_PEERS names the peers' interpreters (see peers/__init__.py).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import peers
import pytest
from interleave import SMOKE, Timed, Timings, interleave
from report import Report, Row

HERE = Path(__file__).parent
REPORT = pytest.StashKey[Report]()
MISSED = pytest.StashKey[list[str]]()

Kind = Literal["at_least", "at_most", "excess_at_most"]


class Compare:
    """Times, records and gates comparisons; one per test, all writing into the report of the pytest run."""

    def __init__(self, report: Report, slack: float, missed: list[str]) -> None:
        self._report = report
        self._slack = slack
        self._missed = missed

    def __call__(
        self,
        group: str,
        functions: Mapping[str, Timed],
        *,
        baseline: str,
        shape: str = "",
        unit: str = "us",
        contender: str | None = None,
        kind: Kind = "at_least",
        target: float | None = None,
        allowance: float = 0.0,
        rounds: int = 15,
        min_time: float = 0.02,
        max_time: float = 20.0,
        items: int = 1,
    ) -> Timings:
        """Interleave ``functions`` and record each of them against ``baseline``; see ``record`` and ``interleave``."""
        timings = interleave(functions, rounds=rounds, min_time=min_time, max_time=max_time, items=items)
        self.record(
            group,
            timings,
            baseline=baseline,
            shape=shape,
            unit=unit,
            contender=contender,
            kind=kind,
            target=target,
            allowance=allowance,
        )
        return timings

    def record(
        self,
        group: str,
        timings: Timings | Mapping[str, Sequence[float]],
        *,
        baseline: str,
        shape: str = "",
        unit: str = "us",
        contender: str | None = None,
        kind: Kind = "at_least",
        target: float | None = None,
        allowance: float = 0.0,
        detail: Mapping[str, str] = {},
    ) -> None:
        """Record measurements and gate the contender.

        Args:
            group: Heading in the table.
            timings: Of ``interleave``; or per name a series taken in the same rounds, in seconds, or in items per
                second where ``unit`` ends in ``/s``.
            baseline: Name that the others are compared with.
            shape: What distinguishes this comparison from others of the group.
            unit: ns, us, ms, s, or a rate such as ``steps/s``; of the raw numbers in the table.
            contender: Name that the target applies to (the first after the baseline); the others are context.
            kind: What the figure is: ``at_least``: baseline / contender (speed-up); ``at_most``: contender / baseline
                (cost); ``excess_at_most``: contender - baseline, in seconds.
            target: Bound of the figure's median; None records without a gate. A miss fails the test at its end, so that
                several comparisons of one test are all recorded.
            allowance: Seconds taken off the contender's before its figure ("twice the copy, plus 2 us").
            detail: Per name, a few words shown beside its numbers.
        """
        if not isinstance(timings, Timings):
            timings = Timings({k: [1 / x for x in v] if unit.endswith("/s") else [*v] for k, v in timings.items()})
        contender = contender or next((name for name in timings.seconds if name != baseline), None)

        figures: dict[Kind, Callable[[float, float], float]] = {
            "at_least": lambda mine, theirs: theirs / max(mine - allowance, 1e-12),
            "at_most": lambda mine, theirs: (mine - allowance) / theirs,
            "excess_at_most": lambda mine, theirs: mine - allowance - theirs,
        }
        for name in timings.seconds:
            row = Row(group, shape, name, unit, timings.of(name), timings.seconds[name], detail=detail.get(name, ""))
            if name != baseline:
                row.baseline, row.kind = baseline, kind
                row.figure = timings.paired(name, baseline, figures[kind])
                row.allowance = allowance
            if name == contender and target is not None:
                row.target = target
                row.verdict = self._verdict(row.figure.median, kind, target)
                if row.verdict == "missed":
                    self._missed.append(row.sentence())
            self._report.rows.append(row)

    def not_measured(self, group: str, names: Sequence[str] | str, *, shape: str = "", reason: str = "") -> None:
        """Record rows without numbers."""
        for name in [names] if isinstance(names, str) else names:
            self._report.rows.append(Row(group, shape, name, "", None, [], detail=reason))

    def _verdict(self, figure: float, kind: Kind, target: float) -> str:
        if SMOKE:
            return "smoke"
        met, tolerable = figure <= target, figure <= target * (1 + self._slack)
        if kind == "at_least":
            met, tolerable = figure >= target, figure >= target * (1 - self._slack)
        return "met" if met else "within slack" if tolerable else "missed"


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Compare:
    """Times functions side by side and gates their ratio."""
    slack = 0.0 if os.environ.get("XCFAST_BENCH_STRICT") == "1" else request.config.getoption("--benchmark-slack")
    missed = request.node.stash.setdefault(MISSED, [])
    return Compare(request.config.stash[REPORT], slack, missed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield
    if missed := item.stash.get(MISSED, []):
        pytest.fail("target missed: " + "\n".join(missed), pytrace=False)


@pytest.fixture(scope="session")
def peer_interpreters() -> dict[str, str]:
    """Returns the interpreter of each peer that is installed on this machine."""
    return peers.interpreters()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xcfast benchmarks")
    group.addoption("--benchmark-markdown", type=Path, metavar="FILE", default=HERE / "results.md", help="the table")
    group.addoption("--benchmark-slack", type=float, default=0.15, help="share by which a target may be missed")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))  # tests judge warnings, benchmarks measure
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(900))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    report = config.stash[REPORT]
    if not report.rows:
        return
    terminalreporter.section("benchmarks")
    terminalreporter.write(report.text())
    path = config.getoption("--benchmark-markdown")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.markdown())
    path.with_suffix(".json").write_text(report.json())
    terminalreporter.write_line(f"written to {path} and, with the raw series, {path.with_suffix('.json').name}")
