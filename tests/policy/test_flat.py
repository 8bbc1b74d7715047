import copy

import numpy as np
import torch
from native_core import make_policy

from xcfast.policy.flat import FlatParameters


def flat_weights(module):
    return np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])


def test_reading_and_writing_are_inverse(small):
    model = make_policy(small())
    before = flat_weights(model)
    flat = FlatParameters(model)
    np.testing.assert_array_equal(flat.array, before)
    flat.array *= 2.0
    np.testing.assert_array_equal(flat_weights(model), before)  # no memory is shared
    flat.write()
    np.testing.assert_array_equal(flat_weights(model), 2.0 * before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone() * 0.25
    flat.read()
    np.testing.assert_array_equal(flat.array, 0.5 * before)


def test_a_copy_of_the_module_is_not_written_to(small):
    model = make_policy(small())
    flat = FlatParameters(model)
    twin, before = copy.deepcopy(model), flat_weights(model)
    flat.array[:] = 0.0
    flat.write()
    np.testing.assert_array_equal(flat_weights(twin), before)
    assert not flat_weights(model).any()


def test_places_and_views_are_those_of_the_parameters(small):
    model = make_policy(small())
    flat = FlatParameters(model)
    for parameter, view in zip(model.parameters(), flat.split(torch.from_numpy(flat.array)), strict=True):
        assert torch.equal(view, parameter)
        place = flat.place(parameter)
        np.testing.assert_array_equal(flat.array[place : place + parameter.numel()], parameter.detach().ravel())


def test_weights_that_are_not_contiguous(small):
    model = make_policy(small())
    linear = model.actor.mu[0]
    linear.weight.data = linear.weight.data.T.contiguous().T
    flat = FlatParameters(model)
    np.testing.assert_array_equal(flat.array, flat_weights(model))
    wanted = flat.array + 1.0
    flat.array[:] = wanted
    flat.write()
    np.testing.assert_array_equal(flat_weights(model), wanted)
