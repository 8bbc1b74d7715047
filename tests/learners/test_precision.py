"""The native learner's precisions: gradients with the same roundings and without, threads, rows, refusals."""

import copy

import numpy as np
import pytest
import torch
from native_core import make_core, make_policy
from test_learner_native import EPS, NETWORKS, Batch, torch_gradients

from xcfast import _core

VARIANTS = [(p, v) for p in ("bf16x3", "bf16") for v in _core.nn_variants(p)]
UNIT = 2.0**-8  # half of the distance from 1 to the next bfloat16
ERROR = {"bf16x3": 3 * UNIT**2, "bf16": 2 * UNIT}  # of a product of two numbers, relative; test_half.cpp derives it
ROWS = 97


def product(x, y, precision):
    """The matrix product of float64 matrices whose elements are rounded as that precision rounds them."""

    def nearest(z):
        return z.float().bfloat16().double()

    if precision == "fp32":
        return x @ y
    x_hi, y_hi = nearest(x), nearest(y)
    result = x_hi @ y_hi
    if precision == "bf16x3":
        result = result + x_hi @ nearest(y.float() - y_hi) + nearest(x.float() - x_hi) @ y_hi
    return result


class Product(torch.autograd.Function):
    """x w^T, whose gradients are such products too."""

    @staticmethod
    def forward(ctx, x, w, precision):
        ctx.save_for_backward(x, w)
        ctx.precision = precision
        return product(x, w.T, precision)

    @staticmethod
    def backward(ctx, dz):
        x, w = ctx.saved_tensors
        return product(dz, w, ctx.precision), product(dz.T, x, ctx.precision), None


class RoundedLinear(torch.nn.Linear):
    precision = "fp32"

    def forward(self, x):
        return Product.apply(x, self.weight, self.precision) + self.bias


def rounded(policy, precision):
    """A copy of the policy whose layers multiply with that precision."""
    policy = copy.deepcopy(policy)
    for module in policy.modules():
        if isinstance(module, torch.nn.Linear):
            module.__class__ = RoundedLinear
            module.precision = precision
    return policy


def smooth(small, **keys):
    """Neither kinks nor a clip range, at whose edges a rounding error would decide for one side."""
    return small(activation="tanh", clip_range=50.0, ent_coef=0.02, **keys)


def core_gradient(policy, config, batch, precision, variant, threads=1, rows=ROWS):
    core, *_ = make_core(policy, config, variant, threads, rows, precision)
    losses = core.compute_gradients(*batch.arrays(), config.use_advnorm)
    return core.gradient.copy(), losses


@pytest.mark.parametrize(("precision", "variant"), VARIANTS)
@pytest.mark.parametrize("policy", ["Gaussian_AC", "Categorical_AC"])
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_are_those_of_rounded_products(small, network, policy, precision, variant):
    config = smooth(small, policy=policy, **NETWORKS[network])
    model = make_policy(config)
    batch = Batch(model, ROWS)
    exact, exact_losses = torch_gradients(model, config, batch)
    wanted, _ = torch_gradients(rounded(model, precision), config, batch)
    gradient, losses = core_gradient(model, config, batch, precision, variant)
    # A gradient is the result of one product for each layer forward, one back, and one over the rows. Each changes a
    # term by at most ERROR of it. Signs are random, so that the sum changes by about ERROR of its own size. A change of
    # the log-probability, which is rounded in proportion to its size, multiplies the gradient.
    layers = sum(p.ndim == 2 for p in model.parameters())
    tolerance = (2 * layers + 1 + np.abs(batch.log_probs).max()) * ERROR[precision]
    assert np.linalg.norm(gradient - exact) <= tolerance * np.linalg.norm(exact)
    np.testing.assert_allclose(losses[:3], exact_losses[:3], rtol=tolerance, atol=tolerance)
    # Apart from that, float32's errors are left (test_learner_native.check_gradients), and operands so near to the
    # middle of two bfloat16 that these errors decide between them: few, a small part of the roundings' effect.
    widest = max(max(p.shape) for p in model.parameters())
    chains = 2 * layers * (np.sqrt(widest) + np.sqrt(ROWS)) + np.abs(batch.log_probs).max()
    allowed = chains * EPS * np.linalg.norm(exact) + 0.1 * np.linalg.norm(wanted - exact)
    assert np.linalg.norm(gradient - wanted) <= allowed


@pytest.mark.parametrize(("precision", "variant"), VARIANTS)
@pytest.mark.parametrize("rows", [1, 33, 64, 1500])
def test_bits_do_not_depend_on_the_number_of_threads(small, rows, precision, variant):
    config = smooth(small, representation_hidden_size=[70], actor_hidden_size=[33], use_advnorm=False)
    model = make_policy(config)
    batch = Batch(model, rows)
    results = [core_gradient(model, config, batch, precision, variant, threads, rows) for threads in (1, 2, 5)]
    for gradient, losses in results[1:]:
        np.testing.assert_array_equal(gradient, results[0][0])
        assert losses == results[0][1]


@pytest.mark.parametrize(("precision", "variant"), VARIANTS)
def test_a_row_does_not_depend_on_its_neighbours(small, precision, variant):
    config = small(representation_hidden_size=[300], actor_hidden_size=[70, 33])
    model = make_policy(config)
    batch = Batch(model, 200)
    core, *_ = make_core(model, config, variant, rows=130, precision=precision)
    values, log_probs = core.evaluate(batch.obs, batch.actions)
    for size in (1, 2, 3, 15, 17, 33, 64):
        for start in range(0, 200 - size, 31):
            rows = slice(start, start + size)
            some = core.evaluate(batch.obs[rows], batch.actions[rows])
            np.testing.assert_array_equal(some[0], values[rows])
            np.testing.assert_array_equal(some[1], log_probs[rows])


@pytest.mark.parametrize(("precision", "variant"), VARIANTS)
def test_what_was_not_finite_is_forgotten(small, precision, variant):
    """A minibatch with NaN leaves nothing behind in the learner's memory, beyond the rows of a shorter one either."""
    config = smooth(small)
    model = make_policy(config)
    core, *_ = make_core(model, config, variant, rows=ROWS, precision=precision)
    spoiled = Batch(model, ROWS)
    spoiled.obs[:] = np.nan
    core.compute_gradients(*spoiled.arrays(), False)
    assert np.isnan(core.gradient).any()
    batch = Batch(model, 37)
    core.compute_gradients(*batch.arrays(), config.use_advnorm)
    fresh, _ = core_gradient(model, config, batch, precision, variant)
    np.testing.assert_array_equal(core.gradient, fresh)


@pytest.mark.parametrize("precision", ["bf16x3", "bf16"])
def test_an_emulation_must_be_asked_for(small, precision):
    config = smooth(small)
    model = make_policy(config)
    batch = Batch(model, 20)
    hardware = _core.nn_hardware(precision)
    if hardware is None:
        with pytest.raises(ValueError, match=f"precision '{precision}' needs a CPU with AMX tiles"):
            make_core(model, config, precision=precision)
    else:
        by_default, _ = core_gradient(model, config, batch, precision, None)
        np.testing.assert_array_equal(by_default, core_gradient(model, config, batch, precision, hardware)[0])
    assert hardware in (None, _core.nn_variants(precision)[-1])
    assert _core.nn_variants(precision)[: len(_core.nn_variants())] == _core.nn_variants()


def test_float32_is_the_default_and_hardware(small):
    assert _core.nn_hardware("fp32") == _core.nn_variants()[-1]
    assert _core.nn_variants("fp32") == _core.nn_variants()
    config = smooth(small)
    model = make_policy(config)
    core, *_ = make_core(model, config, _core.nn_variants()[-1])
    batch = Batch(model, 20)
    core.compute_gradients(*batch.arrays(), config.use_advnorm)
    np.testing.assert_array_equal(core.gradient, core_gradient(model, config, batch, "fp32", None)[0])


def test_wrong_names_are_refused(small):
    config = smooth(small)
    model = make_policy(config)
    for call in (_core.nn_variants, _core.nn_hardware, lambda name: make_core(model, config, precision=name)):
        with pytest.raises(ValueError, match="precision must be 'fp32', 'bf16x3' or 'bf16'; got 'fp16'"):
            call("fp16")
    with pytest.raises(ValueError, match=r"variant must be one of nn_variants\('bf16'\); got 'sse'"):
        make_core(model, config, "sse", precision="bf16")
