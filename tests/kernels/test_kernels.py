"""Random streams, instruction-set variants, the choice of an implementation, the stubs."""

import ast
import inspect
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import KERNELS, forced

import xcfast
from xcfast import _core, kernels
from xcfast.kernels import reference
from xcfast.kernels.noise import gaussian_noise, uniform_noise
from xcfast.kernels.numba import impl as numba_impl

each_implementation = pytest.mark.parametrize("implementation", KERNELS)

# --- random streams ---


@pytest.mark.parametrize("philox", [_core.philox4x32, reference.philox4x32])
@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ([0] * 4, [0] * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(philox, counter, key, wanted):
    """The vectors published with Random123."""
    assert tuple(philox(counter, key)) == wanted


@each_implementation
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(-(2**70), 2**70),
    env_offset=st.integers(0, 2**31),
    counters=st.lists(st.integers(0, 2**62), min_size=1, max_size=5),
    width=st.integers(1, 5),
)
def test_noise_has_the_bits_of_the_reference(implementation, seed, env_offset, counters, width):
    steps = np.array(counters, np.int64)
    with forced(implementation):
        noise = gaussian_noise(seed, env_offset, steps, np.empty((len(steps), width), np.float32))
        uniform = uniform_noise(seed, env_offset, steps, np.empty(len(steps)))
    np.testing.assert_array_equal(
        noise.view(np.uint32), reference.gaussian_noise(seed, env_offset, counters, width).view(np.uint32)
    )
    np.testing.assert_array_equal(
        uniform.view(np.uint64), reference.uniform_noise(seed, env_offset, counters).view(np.uint64)
    )


def test_gaussian_transform_has_the_bits_of_the_reference_in_double():
    """float32 results hide the last bits; here they are compared over the whole range, both tails included."""
    rng = np.random.default_rng(0)
    tails = [2.0**-e * (1 + f) for e in range(4, 54) for f in rng.random(20)]
    for u in [2.0**-53, 1 - 2.0**-53, 0.075, 0.925, 0.5, *rng.random(2000), *tails, *(1 - t for t in tails if t < 1)]:
        if 0 < u < 1:
            assert _core.inverse_normal_cdf(u) == reference.inverse_normal_cdf(u)


def test_gaussian_transform_inverts_the_distribution():
    """Phi(x) = erfc(-x / sqrt 2) / 2, an independent function; an error in x is amplified by about 1 + x^2."""
    for u in [2.0**-53, 1e-15, 1e-9, 1e-4, 0.01, 0.074, 0.076, 0.3, 0.4999, 0.5]:
        x = _core.inverse_normal_cdf(u)
        back = 0.5 * math.erfc(-x / math.sqrt(2))
        assert abs(back / u - 1) <= 8 * 2.0**-52 * (1 + x * x)
        if u > 1e-3:
            assert _core.inverse_normal_cdf(1 - u) == pytest.approx(-x, rel=1e-12)


def test_log_is_a_logarithm():
    rng = np.random.default_rng(1)
    for x in [*rng.random(200), *np.exp(rng.normal(size=200) * 100), math.sqrt(0.5), math.sqrt(2), 1.0, 1 + 2.0**-52]:
        assert abs(reference.portable_log(x) - math.log(x)) <= 4 * 2.0**-52 * abs(math.log(x))


@each_implementation
def test_noise_is_standard_normal(implementation):
    """Bounds: six standard deviations of each statistic; Kolmogorov-Smirnov P(sqrt(n) D > 3) < 4e-8."""
    with forced(implementation):
        noise = gaussian_noise(5, 0, np.arange(20_000), np.empty((20_000, 5), np.float32))
    x = np.sort(noise.astype(np.float64).reshape(-1))
    n = len(x)
    assert abs(x.mean()) < 6 / math.sqrt(n)
    assert abs(x.var() - 1) < 6 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 6 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 6 * math.sqrt(96 / n)
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    distance = max(np.max(np.arange(1, n + 1) / n - cdf), np.max(cdf - np.arange(n) / n))
    assert math.sqrt(n) * distance < 3
    lagged = [np.mean(noise[:-1, a] * noise[1:, b], dtype=np.float64) for a in range(5) for b in range(5)]
    across = [np.mean(noise[:, a] * noise[:, b], dtype=np.float64) for a in range(5) for b in range(a)]
    assert max(map(abs, lagged + across)) < 6 / math.sqrt(20_000 - 1)


@each_implementation
def test_noise_of_an_env_does_not_depend_on_its_group(implementation):
    counters = np.array([3, 1, 4, 1, 5, 9, 2], np.int64)
    with forced(implementation):
        whole = gaussian_noise(7, 10, counters, np.empty((7, 3), np.float32))
        uniform = uniform_noise(7, 10, counters, np.empty(7))
        for a, b in [(0, 2), (2, 3), (3, 7)]:
            part = gaussian_noise(7, 10 + a, counters[a:b], np.empty((b - a, 3), np.float32))
            np.testing.assert_array_equal(part, whole[a:b])
            np.testing.assert_array_equal(uniform_noise(7, 10 + a, counters[a:b], np.empty(b - a)), uniform[a:b])
        narrow = gaussian_noise(7, 10, counters, np.empty((7, 2), np.float32))
    np.testing.assert_array_equal(narrow, whole[:, :2])


@each_implementation
def test_streams_differ(implementation):
    """By seed, env and step; and the uniform stream is not the Gaussian one seen through its transform."""
    zero = np.zeros(1, np.int64)
    with forced(implementation):
        draws = [
            gaussian_noise(seed, env, zero + step, np.empty((1, 4), np.float32)).tobytes()
            for seed, env, step in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2**32), (2**63, 0, 0)]
        ]
        uniform = uniform_noise(0, 0, zero, np.empty(1))[0]
    assert len(set(draws)) == len(draws)
    assert np.float32(_core.inverse_normal_cdf(uniform)) != np.frombuffer(draws[0], np.float32)[0]


@each_implementation
def test_noise_errors(implementation):
    with forced(implementation):
        with pytest.raises(ValueError, match=r"out float32 \[N, A\].*got int64 \[3\], float64 \[3, 2\], 0"):
            gaussian_noise(0, 0, np.zeros(3, np.int64), np.empty((3, 2)))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"out float64 \[N\].*got int64 \[3\], float64 \[2\], 0"):
            uniform_noise(0, 0, np.zeros(3, np.int64), np.empty(2))


@each_implementation
def test_noise_names_the_fault_of_an_array(implementation):
    memory = np.zeros(6 * 8 + 1, np.uint8)
    unaligned = memory[1:].view(np.int64)
    read_only = np.zeros(6)
    read_only.flags.writeable = False
    counters, out = np.zeros(6, np.int64), np.zeros(6)
    shared = counters.view(np.float64)
    with forced(implementation):
        for given, target, message in (
            (unaligned, out, "got int64 .6. unaligned, float64 .6., 0"),
            (np.zeros(12, np.int64)[::2], out, "got int64 .6. not C-contiguous, float64"),
            (counters, read_only, "float64 .6. read-only, 0"),
            (counters, shared, "float64 .6. sharing memory, 0"),
            (np.ma.array(counters), out, "got MaskedArray, float64"),
        ):
            with pytest.raises(ValueError, match=message):
                uniform_noise(0, 0, given, target)
        with pytest.raises(ValueError, match=r"got int64 .6. unaligned, float32 .6, 1., 0"):
            gaussian_noise(0, 0, unaligned, np.zeros((6, 1), np.float32))


# --- implementations and variants ---


def _everything(impl):
    """Results of every kernel on one set of inputs, odd sizes included."""
    rng = np.random.default_rng(3)
    results = []
    for dtype, outside in ((np.float32, False), (np.float64, True)):
        for num_steps, num_envs in [(1, 1), (9, 13), (5, 64)]:
            r, v, f, x = rng.normal(size=(4, num_steps, num_envs)).astype(dtype)
            term, trunc = rng.random((2, num_steps, num_envs)) < 0.2
            out = np.empty((2, num_steps, num_envs), dtype)
            assert impl.gae(r, v, term, trunc, v[0].copy(), f, None, 0.99, 0.95, out[0], out[1])
            results.append(out.copy())
            assert impl.gae(r, v, term, trunc, None, None, x, 0.99, 0.95, out[0], out[1])
            results.append(out.copy())
            assert impl.discounted_returns(r, term, trunc, v[0].copy(), f, None, 0.99, out[0])
            results.append(out[0].copy())
            mean, var, count = np.zeros(num_envs), np.ones(num_envs), np.zeros(1, np.int64)
            y = np.empty((num_steps, num_envs), np.float32)
            assert impl.moments_update(r, mean, var, count)
            assert impl.update_and_normalize(v, mean, var, count, 1e-8, outside, 2.0, y)
            results += [mean.copy(), var.copy(), y.copy()]
            counts, means, m2s = (
                np.zeros(num_steps, np.int64),
                np.zeros((num_steps, num_envs)),
                np.zeros((num_steps, num_envs)),
            )
            for obs in (r, v, f):
                assert impl.normalize_and_track(obs, mean, var, count, 1e-8, outside, 2.0, counts, means, m2s, y)
            assert impl.merge_tracked(counts, means, m2s, mean, var, count)
            results += [means, m2s, mean.copy(), var.copy(), y.copy()]
            scalar, carry = [np.zeros(()), np.ones(()), np.zeros(1, np.int64)], np.zeros(num_envs)
            assert impl.normalize_rewards(r, term, 0.9, carry, np.empty((3, num_envs)), *scalar, 1e-8, outside, 2.0, y)
            results += [carry, *scalar, y.copy()]
    return results


@pytest.mark.parametrize("variant", _core.build_info()["variants"])
def test_variants_and_numba_give_the_same_bits(variant):
    chosen = _core.build_info()["variant"]
    try:
        _core.use_variant(variant)
        assert _core.build_info()["variant"] == variant
        given = _everything(_core)
    finally:
        _core.use_variant(chosen)
    for x, y in zip(given, _everything(numba_impl), strict=True):
        np.testing.assert_array_equal(x, y)


def test_build_info():
    info = _core.build_info()
    assert info["variant"] in info["variants"] and "baseline" in info["variants"]
    assert "fast math" not in info["flags"]
    with pytest.raises(ValueError, match="variant must be one that build_info"):
        _core.use_variant("mmx")


def _run(code, **environment):
    env = {k: v for k, v in os.environ.items() if k != "XCFAST_IMPL"} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100)


MISSING = "import sys; sys.modules['xcfast._core'] = None\n"


def test_environment_variable_forces():
    result = _run("from xcfast import kernels; print(kernels.name, kernels.impl.__name__)", XCFAST_IMPL="numba")
    assert result.stdout.split() == ["numba", "xcfast.kernels.numba.impl"], result.stderr
    result = _run("from xcfast import kernels", XCFAST_IMPL="fortran")
    assert "XCFAST_IMPL must be one of cpp, numba, torch, triton; got 'fortran'" in result.stderr


def test_missing_core():
    result = _run(MISSING + "from xcfast import kernels", XCFAST_IMPL="cpp")
    assert result.returncode == 1 and "pip install -e ." in result.stderr
    result = _run(MISSING + "from xcfast import kernels; print(kernels.name)")
    assert result.stdout.split() == ["numba"] and result.stderr.count("RuntimeWarning") == 1


def test_training_without_the_core(tmp_path):
    """DummyVecEnv and the numba kernels need no compiler; SubprocVecEnv says in one sentence what it needs."""
    keys = (
        f"env_id=InvertedPendulum-v4 device=cpu parallels=2 horizon_size=8 running_steps=32 n_epochs=1 n_minibatch=2 "
        f"test_episode=1 actor_hidden_size=[8] logger=none log_dir={tmp_path}/logs model_dir={tmp_path}/models"
    )
    code = (
        f"{MISSING}from xcfast.train import main\n"
        f"keys = ['--env-id', 'InvertedPendulum-v4', *{keys!r}.split()]\n"
        "print(main([*keys, 'vectorize=DummyVecEnv']), main([*keys, 'vectorize=SubprocVecEnv']))\n"
    )
    result = _run(code)
    assert result.stdout.splitlines()[-1] == "0 2", result.stderr
    assert result.stderr.splitlines()[-1].startswith("xcfast: SubprocVecEnv needs the compiled core")
    assert "pip install -e ." in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


def test_a_rollout_compiles_what_numba_will_run(monkeypatch):
    with forced("numba"):
        called = []
        monkeypatch.setattr(numba_impl, "warmup", lambda: called.append(True))
        xcfast.Rollout(2, 1, (1,))
    assert called


def test_numba_without_jit():
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import numpy as np\n"
        "from xcfast.kernels import noise, reference\n"
        "from xcfast.kernels.numba import impl as numba_impl\n"
        "numba_impl.warmup()\n"
        "given = noise.gaussian_noise(3, 1, np.arange(3), np.empty((3, 3), np.float32))\n"
        "assert (given == reference.gaussian_noise(3, 1, [0, 1, 2], 3)).all()\n"
    )
    result = _run(code, NUMBA_DISABLE_JIT="1", XCFAST_IMPL="numba")
    assert result.returncode == 0, result.stderr


# --- stubs ---


def test_stubs_match_the_extension():
    tree = ast.parse((Path(xcfast.__file__).parent / "_core.pyi").read_text())
    stubs = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    public = {name for name in dir(_core) if not name.startswith("_")}
    assert set(stubs) == public
    for name in kernels_in_stub(stubs):
        parameters = [a.arg for a in stubs[name].args.posonlyargs]
        assert len(parameters) == len(inspect.signature(getattr(numba_impl, name)).parameters)
        with pytest.raises(TypeError, match=f"{name} takes {len(parameters)} arguments; got 0"):
            getattr(_core, name)()


def kernels_in_stub(stubs):
    return [name for name, node in stubs.items() if isinstance(node, ast.FunctionDef) and node.args.posonlyargs]


def test_numba_serves_every_kernel():
    tree = ast.parse((Path(xcfast.__file__).parent / "_core.pyi").read_text())
    stubs = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {*kernels_in_stub(stubs), "warmup"} == set(numba_impl.__all__)
    assert kernels.impl is _core or kernels.name != "cpp"
