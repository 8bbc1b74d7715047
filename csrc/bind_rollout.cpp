// Rollout storage and random streams: argument checks and GIL release for kernels/rollout.hpp and kernels/random.hpp.
#include <algorithm>
#include <array>
#include <pybind11/stl.h>

#include "array_arg.hpp"
#include "kernels/random.hpp"
#include "kernels/rollout.hpp"

namespace {

using xc::Array;

// Finds row `row` of a buffer [T, *shape], for a step's array of that shape and dtype.
bool row_copy(PyObject *buffer_object, PyObject *step_object, int64_t step, xc::RowCopy &copy) {
  Array buffer, given;
  if (!xc::plain_output(buffer_object, buffer) || !xc::plain(step_object, given)) return false;
  if (buffer.nd < 1 || step >= buffer.shape[0] || given.dtype != buffer.dtype || !buffer.tail_matches(given, 1)) return false;
  const int64_t bytes = given.bytes();
  copy = {given.data, buffer.data + step * bytes, bytes};
  return true;
}

// store_step(step, obs_buffer, actions_buffer, rewards_buffer, terminated_buffer, truncated_buffer, episode_returns, episode_lengths,
//            episodes, num_episodes, cuts, num_cuts, num_final, obs, actions, rewards, terminated, truncated) -> (episodes, cuts)
PyObject *store_step(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  int64_t step, num_episodes, num_cuts, num_final;
  if (!xc::count_is("store_step", nargs, 18) || !xc::to_int(args[0], step) || !xc::to_int(args[9], num_episodes) ||
      !xc::to_int(args[11], num_cuts) || !xc::to_int(args[12], num_final))
    return nullptr;
  Array rewards_buffer, terminated_buffer, truncated_buffer, returns, lengths, episodes, cuts, rewards, terminated, truncated;
  xc::RowCopy obs, actions;
  if (!xc::plain_output(args[3], rewards_buffer) || !rewards_buffer.is_f32() || rewards_buffer.nd != 2) Py_RETURN_NONE;
  const int64_t num_steps = rewards_buffer.shape[0], num_envs = rewards_buffer.shape[1];
  auto is_flags = [&](const Array &x) { return x.is_bool() && x.same_shape(rewards_buffer); };
  if (step < 0 || step >= num_steps || num_episodes < 0 || num_cuts < 0 || !row_copy(args[1], args[13], step, obs) ||
      !row_copy(args[2], args[14], step, actions) || !xc::plain_output(args[4], terminated_buffer) || !is_flags(terminated_buffer) ||
      !xc::plain_output(args[5], truncated_buffer) || !is_flags(truncated_buffer) || !xc::plain_output(args[6], returns) ||
      !returns.is_f64() || !returns.is_vector(num_envs) || !xc::plain_output(args[7], lengths) || !lengths.is_i64() ||
      !lengths.is_vector(num_envs) || !xc::plain_output(args[8], episodes) || episodes.nd != 1 ||
      episodes.itemsize() != int64_t(sizeof(xc::Episode)) || num_episodes + num_envs > episodes.shape[0] ||
      !xc::plain_output(args[10], cuts) || !cuts.is_i64() || cuts.nd != 1 || num_cuts + num_envs > cuts.shape[0] ||
      !xc::plain(args[15], rewards) || !rewards.is_float() || !rewards.is_vector(num_envs) || !xc::plain(args[16], terminated) ||
      !terminated.is_bool() || !terminated.is_vector(num_envs) || !xc::plain(args[17], truncated) || !truncated.is_bool() ||
      !truncated.is_vector(num_envs))
    Py_RETURN_NONE;
  const int64_t cut = xc::count_cut_unchecked(terminated.as<uint8_t>(), truncated.as<uint8_t>(), num_envs);
  if (cut != num_final) {
    PyErr_Format(PyExc_ValueError,
                 "final_obs must have one row for each env that is truncated and not terminated: %lld at step %lld; got %lld",
                 static_cast<long long>(cut), static_cast<long long>(step), static_cast<long long>(num_final));
    return nullptr;
  }
  int64_t finished = 0;
  {
    xc::MaybeReleaseGil release((obs.bytes + actions.bytes) / 4);
    xc::copy_row_unchecked(obs);
    xc::copy_row_unchecked(actions);
    const int64_t row = step * num_envs;
    auto call = [&](auto *r) {
      finished = xc::store_step_unchecked(step, num_envs, r, terminated.as<const uint8_t>(), truncated.as<const uint8_t>(),
                                          rewards_buffer.as<float>() + row, terminated_buffer.as<uint8_t>() + row,
                                          truncated_buffer.as<uint8_t>() + row, returns.as<double>(), lengths.as<int64_t>(),
                                          episodes.as<xc::Episode>() + num_episodes, cuts.as<int64_t>() + num_cuts);
    };
    if (rewards.is_f32())
      call(rewards.as<const float>());
    else
      call(rewards.as<const double>());
  }
  return Py_BuildValue("LL", static_cast<long long>(finished), static_cast<long long>(cut));
}

// gather(indices, sources, destinations) -> bool
// Copies destination[i] = source[indices[i]] for each pair. Sources are [R, *shape], with the flat step as first dimension,
// destinations [>= len(indices), *shape].
PyObject *gather(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  if (!xc::count_is("gather", nargs, 3)) return nullptr;
  constexpr Py_ssize_t kMost = 16;
  Array indices;
  if (!PyTuple_Check(args[1]) || !PyTuple_Check(args[2]) || PyTuple_GET_SIZE(args[1]) != PyTuple_GET_SIZE(args[2]) ||
      PyTuple_GET_SIZE(args[1]) > kMost || !xc::plain(args[0], indices) || !indices.is_i64() || indices.nd != 1)
    Py_RETURN_FALSE;
  const Py_ssize_t pairs = PyTuple_GET_SIZE(args[1]);
  const int64_t count = indices.shape[0];
  struct Pair {
    const char *from;
    char *to;
    int64_t bytes;
  };
  std::array<Pair, kMost> work{};
  int64_t rows = -1, elements = 0;
  for (Py_ssize_t i = 0; i < pairs; ++i) {
    Array from, to;
    if (!xc::plain(PyTuple_GET_ITEM(args[1], i), from) || !xc::plain_output(PyTuple_GET_ITEM(args[2], i), to) || from.nd < 1 ||
        to.nd != from.nd || from.dtype != to.dtype || to.shape[0] < count || from.overlaps(to) || to.overlaps(indices) ||
        !std::equal(from.shape + 1, from.shape + from.nd, to.shape + 1) || (rows >= 0 && from.shape[0] != rows))
      Py_RETURN_FALSE;
    rows = from.shape[0];
    int64_t row_size = from.itemsize();
    for (int d = 1; d < from.nd; ++d) row_size *= from.shape[d];
    work[size_t(i)] = {from.data, to.data, row_size};
    elements += count * row_size / 4;
  }
  bool ok = true;
  {
    xc::MaybeReleaseGil release(elements);
    ok = xc::indices_within(indices.as<const int64_t>(), count, rows);
    for (Py_ssize_t i = 0; ok && i < pairs; ++i)
      xc::gather_rows_unchecked(work[size_t(i)].from, work[size_t(i)].to, indices.as<const int64_t>(), count, work[size_t(i)].bytes);
  }
  if (!ok) {
    PyErr_Format(PyExc_IndexError, "indices must be in [0, %lld)", static_cast<long long>(rows));
    return nullptr;
  }
  return Py_NewRef(Py_True);
}

// minibatch_indices(seed, iteration, epoch, num_steps, num_envs, n_minibatch, env_offset, indices, offsets, steps) -> bool
PyObject *minibatch_indices(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  uint64_t seed;
  std::array<int64_t, 6> n{};
  if (!xc::count_is("minibatch_indices", nargs, 10) || !xc::to_seed(args[0], seed)) return nullptr;
  for (size_t i = 0; i < n.size(); ++i)
    if (!xc::to_int(args[i + 1], n[i])) return nullptr;
  const auto [iteration, epoch, num_steps, num_envs, n_minibatch, env_offset] = n;
  Array indices, offsets, steps;
  if (iteration < 0 || epoch < 0 || num_steps < 1 || num_envs < 1 || n_minibatch < 1 || env_offset < 0 ||
      !xc::plain_output(args[7], indices) || !indices.is_i64() || !indices.is_vector(num_steps * num_envs) ||
      !xc::plain_output(args[8], offsets) || !offsets.is_i64() || !offsets.is_vector(n_minibatch + 1) ||
      !xc::plain_output(args[9], steps) || !steps.is_i64() || !steps.is_vector(num_steps))
    Py_RETURN_FALSE;
  xc::MaybeReleaseGil release(num_steps * num_envs * 4);
  xc::minibatch_indices_unchecked(seed, uint32_t(iteration), uint32_t(epoch), num_steps, num_envs, n_minibatch, env_offset,
                                  indices.as<int64_t>(), offsets.as<int64_t>(), steps.as<int64_t>());
  return Py_NewRef(Py_True);
}

// gaussian_noise(seed, env_offset, counters, out) -> bool
PyObject *gaussian_noise(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  uint64_t seed;
  int64_t env_offset;
  if (!xc::count_is("gaussian_noise", nargs, 4) || !xc::to_seed(args[0], seed) || !xc::to_int(args[1], env_offset)) return nullptr;
  Array counters, out;
  if (env_offset < 0 || !xc::plain(args[2], counters) || !counters.is_i64() || counters.nd != 1 || !xc::plain_output(args[3], out) ||
      !out.is_f32() || out.nd != 2 || out.shape[0] != counters.shape[0] || out.overlaps(counters))
    Py_RETURN_FALSE;
  xc::MaybeReleaseGil release(out.size() * 8);
  xc::gaussian_noise_unchecked(seed, env_offset, counters.as<const int64_t>(), out.shape[0], out.shape[1], out.as<float>());
  return Py_NewRef(Py_True);
}

// uniform_noise(seed, env_offset, counters, out) -> bool
PyObject *uniform_noise(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  uint64_t seed;
  int64_t env_offset;
  if (!xc::count_is("uniform_noise", nargs, 4) || !xc::to_seed(args[0], seed) || !xc::to_int(args[1], env_offset)) return nullptr;
  Array counters, out;
  if (env_offset < 0 || !xc::plain(args[2], counters) || !counters.is_i64() || counters.nd != 1 || !xc::plain_output(args[3], out) ||
      !out.is_f64() || !out.same_shape(counters) || out.overlaps(counters))
    Py_RETURN_FALSE;
  xc::MaybeReleaseGil release(out.size() * 8);
  xc::uniform_noise_unchecked(seed, env_offset, counters.as<const int64_t>(), out.shape[0], out.as<double>());
  return Py_NewRef(Py_True);
}

PyMethodDef methods[] = {
    xc::fast_method("store_step", store_step,
                    "store_step(step, obs_buffer, actions_buffer, rewards_buffer, terminated_buffer, truncated_buffer, episode_returns, "
                    "episode_lengths, episodes, num_episodes, cuts, num_cuts, num_final, obs, actions, rewards, terminated, truncated) "
                    "-> tuple[int, int] | None\n\nSee xcfast.Rollout.store. The numbers of episodes and of cut steps appended."),
    xc::fast_method("gather", gather, "gather(indices, sources, destinations) -> bool"),
    xc::fast_method("minibatch_indices", minibatch_indices,
                    "minibatch_indices(seed, iteration, epoch, num_steps, num_envs, n_minibatch, env_offset, indices, offsets, steps) -> "
                    "bool"),
    xc::fast_method("gaussian_noise", gaussian_noise, "gaussian_noise(seed, env_offset, counters, out) -> bool"),
    xc::fast_method("uniform_noise", uniform_noise, "uniform_noise(seed, env_offset, counters, out) -> bool"),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_rollout(pybind11::module_ &m) {
  if (PyModule_AddFunctions(m.ptr(), methods) < 0) throw pybind11::error_already_set();
  m.def(
      "philox4x32",
      [](std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
        xc::philox4x32(counter.data(), uint64_t(key[1]) << 32 | key[0]);
        return pybind11::make_tuple(counter[0], counter[1], counter[2], counter[3]);
      },
      "Returns one block of Philox4x32-10, for the tests against its published vectors.", pybind11::arg("counter"), pybind11::arg("key"));
  m.def("inverse_normal_cdf", &xc::inverse_normal_cdf, "Returns the standard normal quantile of a number in (0, 1).", pybind11::arg("u"));
}
