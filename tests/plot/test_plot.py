"""Learning curves: found, grouped, averaged, drawn."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from xcfast import run
from xcfast.plot.command import main
from xcfast.plot.curves import CurveError, find_runs, group_runs, mean_and_interval, t_quantile
from xcfast.plot.figure import average


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return np.array([[float(cell) for cell in row] for row in list(csv.reader(file))[1:]])


def xuance_run(folder: Path, seed: int, curve: dict[int, float], elapsed: float = 100.0) -> Path:
    """A result folder as XuanCe's benchmarks publish them."""
    run = folder / "InvertedPendulum-v4" / "ppo" / "results" / f"seed_{seed}"
    run.mkdir(parents=True)
    meta = {"algo": "PPO", "env": "MuJoCo", "env_id": "InvertedPendulum-v4", "seed": seed, "xuance_version": "v1.4.0"}
    meta["timestamps"] = {"start_time": "2026-01-12T02:27:04.355659+08:00", "elapsed_seconds": elapsed}
    (run / "meta_data.json").write_text(json.dumps(meta))
    config = {
        "agent": "PPO_Clip",
        "env_id": "InvertedPendulum-v4",
        "env_seed": seed + 15,
        "gamma": 0.98,
        "runner": "DRL",
    }
    (run / "config.json").write_text(json.dumps(config))
    rows = "".join(f"{step},{score}\n" for step, score in curve.items())
    (run / "learning_curve.csv").write_text("step,avg_return\n" + rows)
    return run


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    return figures


# Statistics


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227), (10**6, 1.95996)],
)
def test_quantiles_of_student_t(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, rel=2e-3)


def test_the_interval_holds_the_mean_in_95_of_100():
    rng = np.random.default_rng(0)
    _, low, high = mean_and_interval(rng.normal(7.0, 3.0, (4, 20_000)))
    # 20,000 trials: the share has a deviation of sqrt(0.95 * 0.05 / 20,000) = 0.0015; 4 of them
    assert np.mean((low < 7.0) & (high > 7.0)) == pytest.approx(0.95, abs=0.0062)


def test_one_seed_has_no_interval():
    mean, low, high = mean_and_interval([[1.0, 2.0]])
    assert mean.tolist() == [1.0, 2.0] and np.isnan(low).all() and np.isnan(high).all()


def test_curves_are_averaged_where_all_of_them_are():
    a = np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 2.0])
    b = np.array([5.0, 10.0, 15.0]), np.array([5.0, 7.0, 9.0])
    places, values = average([a, b])
    assert places.tolist() == [5.0, 10.0, 15.0]
    assert values.tolist() == [[0.5, 1.0, 1.5], [5.0, 7.0, 9.0]]
    assert average([a, b], 3)[0].tolist() == [5.0, 10.0, 15.0]
    far = np.array([30.0, 40.0]), np.array([0.0, 0.0])
    assert average([a, far])[0].size == 0


# Reading


def test_runs_are_found_from_any_folder(tiny_runs):
    log_dir = Path(tiny_runs[0].log_dir)
    assert [run.seed for run in find_runs(log_dir.parent.parent)] == [1, 2]
    for folder in (log_dir, Path(tiny_runs[0].model_dir)):
        (found,) = find_runs(folder)
        assert found.folder.samefile(log_dir) and found.source == "xcfast PPO" and found.kind == "evaluation"
        assert found.env_id == "InvertedPendulum-v4"
        curve = read_csv(log_dir / "learning_curve.csv")
        assert found.steps.tolist() == curve[:, 0].tolist() == [0, 256, 512]
        assert found.returns.tolist() == curve[:, 1].tolist()


def test_seconds_are_those_of_each_evaluation(tiny_runs):
    log_dir = Path(tiny_runs[0].log_dir)
    (found,) = find_runs(log_dir)
    elapsed = json.loads((log_dir / "meta_data.json").read_text())["timestamps"]["elapsed_seconds"]
    assert found.seconds is not None
    assert (np.diff(found.seconds) > 0).all() and 0 < found.seconds[0] and found.seconds[-1] <= elapsed
    spent = tiny_runs[0].collection_seconds + tiny_runs[0].update_seconds + tiny_runs[0].evaluation_seconds
    assert found.seconds[-1] >= spent - 0.001  # written with three digits


def test_elapsed_seconds_go_on_in_a_resumed_run(small, tmp_path):
    config = small(running_steps=256, eval_interval=128, checkpoint_interval=128)
    first = run(config, quiet=True)
    checkpoint = Path(first.model_dir) / "checkpoint_128.pth"
    before = read_csv(Path(first.log_dir) / "elapsed.csv")
    run(config, resume=checkpoint, quiet=True)
    after = read_csv(Path(first.log_dir) / "elapsed.csv")
    assert after[:, 0].tolist() == before[:, 0].tolist() == [0, 128, 256]
    assert after[1].tolist() == before[1].tolist() and after[2, 1] > after[1, 1]


def test_a_run_without_evaluations_shows_its_training_episodes(small, tmp_path):
    summary = run(small(), mode="train", quiet=True)
    (found,) = find_runs(Path(summary.log_dir))
    assert found.kind == "training" and found.seconds is not None
    assert found.steps.tolist() == [128, 256, 384, 512]
    assert (found.returns > 0).all() and (np.diff(found.seconds) > 0).all()
    assert list(group_runs([found])) == ["xcfast PPO, training episodes"]


def test_xuances_result_files_are_read(tmp_path):
    xuance_run(tmp_path, 1, {0: 5.0, 5000: 10.0, 10000: 20.0})
    (found,) = find_runs(tmp_path)
    assert (found.source, found.seed, found.settings["gamma"]) == ("XuanCe PPO", 1, 0.98)
    assert found.steps.tolist() == [0, 5000, 10000] and found.returns.tolist() == [5, 10, 20]
    assert found.seconds is not None and found.seconds.tolist() == [0, 50, 100]  # only the end is known


def test_a_line_that_is_being_written_does_not_count(tmp_path):
    folder = xuance_run(tmp_path, 1, {0: 5.0, 5000: 10.0})
    with open(folder / "learning_curve.csv", "a") as file:
        file.write("10000,2")
    assert find_runs(tmp_path)[0].steps.tolist() == [0, 5000]


def test_runs_of_one_seed_count_once_and_settings_are_told_apart(tiny_runs, small, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(tiny_runs[0].log_dir, again)
    os.utime(again / "meta_data.json", (2e9, 2e9))
    other = run(small(learning_rate=1e-3, running_steps=128, seed=1), quiet=True)
    runs = [
        one
        for folder in (tiny_runs[0].log_dir, tiny_runs[1].log_dir, again, other.log_dir)
        for one in find_runs(Path(folder))
    ]
    groups = group_runs(runs)
    assert set(groups) == {
        "xcfast PPO, learning_rate=0.0004, running_steps=512",
        "xcfast PPO, learning_rate=0.001, running_steps=128",
    }
    first = groups["xcfast PPO, learning_rate=0.0004, running_steps=512"]
    assert [one.seed for one in first] == [1, 2] and first[0].folder == again


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: None, "no run folder"),
        (lambda folder: (folder / "meta_data.json").write_text("{"), "damaged result files"),
        (lambda folder: (folder / "meta_data.json").write_text('{"algo": "PPO", "seed": 1}'), "damaged result files"),
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: xuance_run(folder, 1, {}), "none with a curve yet"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, prepare, words):
    folder = tmp_path / "runs"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(CurveError, match=words):
        find_runs(folder)


# Drawing


def test_seeds_become_a_mean_with_a_band(tiny_runs, tmp_path, drawn, capsys):
    output = tmp_path / "new" / "curves.png"
    assert main([str(Path(tiny_runs[0].log_dir).parent), "-o", str(output)]) == 0
    assert output.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert capsys.readouterr().out.strip() == str(output)
    (figure,) = drawn
    left, right = figure.axes
    assert left.get_title() == "InvertedPendulum-v4" and left.get_xlabel() == "environment steps"
    assert right.get_xlabel() == "seconds, evaluations included"
    scores = np.array([read_csv(Path(one.log_dir) / "learning_curve.csv")[:, 1] for one in tiny_runs])
    (line,) = left.lines
    assert line.get_xdata().tolist() == [0, 256, 512]
    np.testing.assert_allclose(line.get_ydata(), scores.mean(0), rtol=1e-12)
    (band,) = left.collections
    half = t_quantile(1) * np.abs(scores[0] - scores[1]) / 2  # s / sqrt(2) of two values
    top = band.get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx((scores.mean(0) + half).max(), rel=1e-12)
    assert line.get_label() == "xcfast PPO (2 seeds)"
    assert len(right.lines) == len(right.collections) == 1


def test_one_run_has_no_band_and_labels_make_lines(tiny_runs, tmp_path, drawn):
    xuance = xuance_run(tmp_path, 1, {0: 5.0, 512: 10.0})
    argv = [f"mine={tiny_runs[0].log_dir}", str(xuance), "-o", str(tmp_path / "curves.png")]
    assert main(argv) == 0
    left, right = drawn[0].axes
    assert {line.get_label() for line in left.lines} == {"mine", "XuanCe PPO"}
    assert not left.collections and not right.collections and len(right.lines) == 2


def test_each_env_gets_its_panels(tiny_runs, small, tmp_path, drawn):
    other = run(small(env_id="InvertedDoublePendulum-v4", running_steps=128), quiet=True)
    assert main([tiny_runs[0].log_dir, other.log_dir, "-o", str(tmp_path / "curves.png")]) == 0
    assert [panel.get_title() for panel in drawn[0].axes[::2]] == ["InvertedDoublePendulum-v4", "InvertedPendulum-v4"]


def test_remarks_say_what_is_not_whole(tmp_path, capsys):
    xuance_run(tmp_path, 1, {0: 5.0, 5000: 10.0, 10000: 20.0})
    short = xuance_run(tmp_path, 2, {0: 5.0, 5000: 10.0})
    meta = json.loads((short / "meta_data.json").read_text())
    del meta["timestamps"]
    (short / "meta_data.json").write_text(json.dumps(meta))
    assert main([str(tmp_path), "-o", str(tmp_path / "curves.png")]) == 0
    remarks = capsys.readouterr().err
    assert "averaged up to step 5,000" in remarks and "1 of 2 runs do not tell the seconds" in remarks


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere"], "no such folder"),
        (["{run}", "-o", "curves.jpeg"], "-o must end in .png, .pdf, .svg; got curves.jpeg"),
    ],
)
def test_a_bad_command_is_one_sentence(tiny_runs, argv, words, capsys):
    assert main([word.format(run=tiny_runs[0].log_dir) for word in argv]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_without_matplotlib_it_says_what_to_install(tiny_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([tiny_runs[0].log_dir, "-o", str(tmp_path / "curves.png")]) == 2
    assert capsys.readouterr().err == 'xcfast.plot: matplotlib is missing; pip install "xcfast[plot]"\n'


def test_a_tilde_is_the_home_folder(tiny_runs, tmp_path, monkeypatch, drawn):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs").symlink_to(Path(tiny_runs[0].log_dir).parent)
    assert main(["~/runs", "mine=~/runs", "-o", "~/curves.png"]) == 0
    assert (tmp_path / "curves.png").is_file()
