// Moments and normalization: argument checks and GIL release for kernels/moments.hpp.
#include "array_arg.hpp"
#include "kernels/moments.hpp"

namespace {

using xc::Array;

// Reads the arrays of running moments: mean and var are float64 of one shape, count is int64 [1], and all are writable.
struct MomentArrays {
  Array mean, var, count;

  bool read(PyObject *const *args) {
    return xc::plain_output(args[0], mean) && xc::plain_output(args[1], var) && xc::plain_output(args[2], count) && mean.is_f64() &&
           var.is_f64() && count.is_i64() && var.same_shape(mean) && count.is_vector(1);
  }
  bool overlap(const Array &other) const { return other.overlaps_any({&mean, &var, &count}); }
  xc::Moments pointers() const { return {mean.as<double>(), var.as<double>(), count.as<int64_t>()}; }
};

// Reads epsilon and epsilon_outside from two consecutive arguments.
bool to_epsilon(PyObject *const *args, xc::Epsilon &epsilon) {
  double value;
  bool outside;
  if (!xc::to_double(args[0], value) || !xc::to_bool(args[1], outside)) return false;
  epsilon = xc::Epsilon(value, outside);
  return true;
}

// Reads a batch [B >= 1, *shape of mean] that does not share memory with the moments.
bool batch_of(PyObject *object, const MomentArrays &m, Array &batch) {
  return xc::plain(object, batch) && batch.is_float() && batch.nd >= 1 && batch.shape[0] >= 1 && batch.tail_matches(m.mean, 1) &&
         !m.overlap(batch);
}

bool float32_like(PyObject *object, const Array &batch, const MomentArrays &m, Array &out) {
  return xc::plain_output(object, out) && out.is_f32() && out.same_shape(batch) && !out.overlaps(batch) && !m.overlap(out);
}

PyObject *moments_update(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  if (!xc::count_is("moments_update", nargs, 4)) return nullptr;
  Array batch;
  MomentArrays m;
  if (!m.read(args + 1) || !batch_of(args[0], m, batch)) Py_RETURN_FALSE;
  const int64_t rows = batch.shape[0], dim = m.mean.size();
  bool usable = false;
  {
    xc::MaybeReleaseGil release(rows * dim);
    auto call = [&](auto *x) {
      usable = xc::moments_update_unchecked(x, rows, dim, m.pointers());
    };
    if (batch.is_f32())
      call(batch.as<const float>());
    else
      call(batch.as<const double>());
  }
  return PyBool_FromLong(usable);
}

template <bool kUpdate>
PyObject *normalize_call(const char *name, PyObject *const *args, Py_ssize_t nargs) {
  xc::Epsilon epsilon(0);
  double clip;
  if (!xc::count_is(name, nargs, 8) || !to_epsilon(args + 4, epsilon) || !xc::to_double(args[6], clip)) return nullptr;
  Array batch, out;
  MomentArrays m;
  if (!m.read(args + 1) || !batch_of(args[0], m, batch) || !float32_like(args[7], batch, m, out)) Py_RETURN_FALSE;
  const int64_t rows = batch.shape[0], dim = m.mean.size();
  bool usable = true;
  {
    xc::MaybeReleaseGil release(rows * dim);
    auto call = [&](auto *x) {
      if (kUpdate) {
        usable = xc::update_and_normalize_unchecked(x, rows, dim, m.pointers(), epsilon, clip, out.as<float>());
      } else {
        xc::normalize_unchecked(x, rows, dim, m.pointers(), epsilon, clip, out.as<float>());
      }
    };
    if (batch.is_f32())
      call(batch.as<const float>());
    else
      call(batch.as<const double>());
  }
  return PyBool_FromLong(usable);
}

PyObject *normalize(PyObject *, PyObject *const *args, Py_ssize_t nargs) { return normalize_call<false>("normalize", args, nargs); }

PyObject *update_and_normalize(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  return normalize_call<true>("update_and_normalize", args, nargs);
}

// Reads the moments of each env: counts int64 [N], means and m2s float64 [N, *shape of mean].
bool tracked(PyObject *const *args, const Array &mean, Array &counts, Array &means, Array &m2s) {
  return xc::plain_output(args[0], counts) && xc::plain_output(args[1], means) && xc::plain_output(args[2], m2s) && counts.is_i64() &&
         counts.nd == 1 && means.is_f64() && m2s.is_f64() && means.nd >= 1 && means.shape[0] == counts.shape[0] &&
         means.tail_matches(mean, 1) && m2s.same_shape(means);
}

PyObject *normalize_and_track(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  xc::Epsilon epsilon(0);
  double clip;
  if (!xc::count_is("normalize_and_track", nargs, 11) || !to_epsilon(args + 4, epsilon) || !xc::to_double(args[6], clip)) return nullptr;
  Array obs, counts, means, m2s, out;
  MomentArrays m;
  if (!m.read(args + 1) || !batch_of(args[0], m, obs) || !tracked(args + 7, m.mean, counts, means, m2s) || !obs.same_shape(means) ||
      !float32_like(args[10], obs, m, out) || obs.overlaps_any({&counts, &means, &m2s}) || out.overlaps_any({&counts, &means, &m2s}))
    Py_RETURN_FALSE;
  const int64_t num_envs = obs.shape[0], dim = m.mean.size();
  auto call = [&](auto *x) {
    xc::normalize_and_track_unchecked(x, num_envs, dim, m.pointers(), epsilon, clip, counts.as<int64_t>(), means.as<double>(),
                                      m2s.as<double>(), out.as<float>());
  };
  xc::MaybeReleaseGil release(num_envs * dim);
  if (obs.is_f32())
    call(obs.as<const float>());
  else
    call(obs.as<const double>());
  return Py_NewRef(Py_True);
}

PyObject *cast_and_track(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  if (!xc::count_is("cast_and_track", nargs, 3)) return nullptr;
  Array obs, poison, out;
  if (!xc::plain(args[0], obs) || !obs.is_float() || !xc::plain_output(args[1], poison) || !poison.is_f64() || !poison.same_shape(obs) ||
      !float32_like(args[2], obs, {}, out) || poison.overlaps_any({&obs, &out}))
    Py_RETURN_FALSE;
  xc::MaybeReleaseGil release(obs.size());
  if (obs.is_f32())
    xc::cast_and_track_unchecked(obs.as<const float>(), obs.size(), poison.as<double>(), out.as<float>());
  else
    xc::cast_and_track_unchecked(obs.as<const double>(), obs.size(), poison.as<double>(), out.as<float>());
  return Py_NewRef(Py_True);
}

PyObject *merge_tracked(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  if (!xc::count_is("merge_tracked", nargs, 6)) return nullptr;
  Array counts, means, m2s;
  MomentArrays m;
  if (!m.read(args + 3) || !tracked(args, m.mean, counts, means, m2s) || m.overlap(counts) || m.overlap(means) || m.overlap(m2s))
    Py_RETURN_FALSE;
  xc::merge_tracked_unchecked(counts.as<const int64_t>(), means.as<const double>(), m2s.as<const double>(), counts.shape[0], m.mean.size(),
                              m.pointers());
  return Py_NewRef(Py_True);
}

PyObject *normalize_rewards(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  xc::Epsilon epsilon(0);
  double gamma, clip;
  if (!xc::count_is("normalize_rewards", nargs, 12) || !xc::to_double(args[2], gamma) || !to_epsilon(args + 8, epsilon) ||
      !xc::to_double(args[10], clip))
    return nullptr;
  Array rewards, done, carry, scratch, out;
  MomentArrays m;
  if (!xc::plain(args[0], rewards) || !rewards.is_float() || rewards.nd != 2 || rewards.shape[0] < 1 || !xc::plain(args[1], done) ||
      !done.is_bool() || !done.same_shape(rewards))
    Py_RETURN_FALSE;
  const int64_t num_steps = rewards.shape[0], num_envs = rewards.shape[1];
  if (!xc::plain_output(args[3], carry) || !carry.is_f64() || !carry.is_vector(num_envs) || !xc::plain_output(args[4], scratch) ||
      !scratch.is_f64() || scratch.size() != 3 * num_envs || !m.read(args + 5) || m.mean.size() != 1 ||
      !float32_like(args[11], rewards, m, out) || out.overlaps_any({&done, &carry, &scratch}) ||
      carry.overlaps_any({&rewards, &done, &scratch, &m.mean, &m.var, &m.count}) || scratch.overlaps_any({&rewards, &done}) ||
      m.overlap(rewards) || m.overlap(done) || m.overlap(scratch))
    Py_RETURN_FALSE;
  auto call = [&](auto *r) {
    xc::normalize_rewards_unchecked(r, done.as<const uint8_t>(), num_steps, num_envs, gamma, carry.as<double>(), scratch.as<double>(),
                                    m.pointers(), epsilon, clip, out.as<float>());
  };
  xc::MaybeReleaseGil release(rewards.size());
  if (rewards.is_f32())
    call(rewards.as<const float>());
  else
    call(rewards.as<const double>());
  return Py_NewRef(Py_True);
}

PyMethodDef methods[] = {
    xc::fast_method("moments_update", moments_update, "moments_update(batch, mean, var, count) -> bool"),
    xc::fast_method("normalize", normalize, "normalize(x, mean, var, count, epsilon, epsilon_outside, clip, out) -> bool"),
    xc::fast_method("update_and_normalize", update_and_normalize,
                    "update_and_normalize(x, mean, var, count, epsilon, epsilon_outside, clip, out) -> bool"),
    xc::fast_method("normalize_and_track", normalize_and_track,
                    "normalize_and_track(obs, mean, var, count, epsilon, epsilon_outside, clip, counts, means, m2s, out) -> bool"),
    xc::fast_method("cast_and_track", cast_and_track, "cast_and_track(obs, poison, out) -> bool"),
    xc::fast_method("merge_tracked", merge_tracked, "merge_tracked(counts, means, m2s, mean, var, count) -> bool"),
    xc::fast_method("normalize_rewards", normalize_rewards,
                    "normalize_rewards(rewards, done, gamma, carry, scratch, mean, var, count, epsilon, epsilon_outside, clip, out) -> "
                    "bool"),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_moments(pybind11::module_ &m) {
  if (PyModule_AddFunctions(m.ptr(), methods) < 0) throw pybind11::error_already_set();
}
