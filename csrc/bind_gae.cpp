// Advantage estimation: argument checks and GIL release for kernels/gae.hpp.
#include "array_arg.hpp"
#include "kernels/gae.hpp"

namespace {

using xc::Array;

struct GaeArrays {
  Array rewards, values, terminated, truncated, last_values, final_values, next_values, advantages, returns;
};

// Returns whether all arrays have one shape, [T] or [T, N], and one float dtype (last_values: [N] or [1, N]), none is missing,
// and no output overlaps another argument.
bool usable(const GaeArrays &a, bool with_values) {
  if ((a.rewards.nd != 1 && a.rewards.nd != 2) || !a.rewards.is_float()) return false;
  const bool flat = a.rewards.nd == 1;
  const int64_t num_steps = a.rewards.shape[0], num_envs = flat ? 1 : a.rewards.shape[1];
  if (num_steps < 1) return false;
  auto like_rewards = [&](const Array &x) { return x.dtype == a.rewards.dtype && x.same_shape(a.rewards); };
  auto is_flags = [&](const Array &x) { return x.is_bool() && x.same_shape(a.rewards); };
  if (with_values && (!like_rewards(a.values) || !like_rewards(a.advantages))) return false;
  if (!like_rewards(a.returns) || !is_flags(a.terminated)) return false;
  if (a.truncated.data && !is_flags(a.truncated)) return false;
  if (a.final_values.data && !like_rewards(a.final_values)) return false;
  if (bool(a.last_values.data) == bool(a.next_values.data)) return false;
  if (a.next_values.data && (a.final_values.data || !like_rewards(a.next_values))) return false;
  if (a.last_values.data) {
    const bool scalar = flat && a.last_values.nd == 0;
    const bool row = !flat && a.last_values.nd == 2 && a.last_values.shape[0] == 1 && a.last_values.shape[1] == num_envs;
    if (a.last_values.dtype != a.rewards.dtype || !(scalar || row || a.last_values.is_vector(num_envs))) return false;
  }
  const Array *inputs[] = {&a.rewards,     &a.values,       &a.terminated, &a.truncated,
                           &a.last_values, &a.final_values, &a.next_values};
  for (const Array *input : inputs)
    if (a.returns.overlaps(*input) || (with_values && a.advantages.overlaps(*input))) return false;
  return !with_values || !a.advantages.overlaps(a.returns);
}

template <class T>
bool run(const GaeArrays &a, double gamma, double gae_lambda, bool with_values) {
  const int64_t num_steps = a.rewards.shape[0], num_envs = a.rewards.nd == 1 ? 1 : a.rewards.shape[1];
  xc::GaeArgs<T> args{a.rewards.as<const T>(),
                      a.values.as<const T>(),
                      a.terminated.as<const uint8_t>(),
                      a.truncated.as<const uint8_t>(),
                      a.last_values.as<const T>(),
                      a.final_values.as<const T>(),
                      a.next_values.as<const T>(),
                      gamma,
                      gae_lambda,
                      a.advantages.as<T>(),
                      a.returns.as<T>(),
                      num_steps,
                      num_envs};
  xc::MaybeReleaseGil release(num_steps * num_envs);
  if (args.truncated && !args.final_values && !args.next_values) {
    if (xc::any_cut_unchecked(args.terminated, args.truncated, num_steps * num_envs)) return false;
    args.truncated = nullptr;  // every truncated step is terminated too, which takes precedence
  }
  if (with_values)
    xc::gae_unchecked(args);
  else
    xc::returns_unchecked(args);
  return true;
}

bool in_unit_interval(double x) { return x >= 0 && x <= 1; }

PyObject *gae(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  double gamma, gae_lambda;
  if (!xc::count_is("gae", nargs, 11) || !xc::to_double(args[7], gamma) || !xc::to_double(args[8], gae_lambda)) return nullptr;
  GaeArrays a;
  const bool ok = xc::plain(args[0], a.rewards) && xc::plain(args[1], a.values) && xc::plain(args[2], a.terminated) &&
                  xc::plain_or_none(args[3], a.truncated) && xc::plain_or_none(args[4], a.last_values) &&
                  xc::plain_or_none(args[5], a.final_values) && xc::plain_or_none(args[6], a.next_values) &&
                  xc::plain_output(args[9], a.advantages) && xc::plain_output(args[10], a.returns) && in_unit_interval(gamma) &&
                  in_unit_interval(gae_lambda) && usable(a, true) &&
                  (a.rewards.is_f32() ? run<float>(a, gamma, gae_lambda, true) : run<double>(a, gamma, gae_lambda, true));
  return PyBool_FromLong(ok);
}

PyObject *discounted_returns(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
  double gamma;
  if (!xc::count_is("discounted_returns", nargs, 8) || !xc::to_double(args[6], gamma)) return nullptr;
  GaeArrays a;
  const bool ok = xc::plain(args[0], a.rewards) && xc::plain(args[1], a.terminated) && xc::plain_or_none(args[2], a.truncated) &&
                  xc::plain_or_none(args[3], a.last_values) && xc::plain_or_none(args[4], a.final_values) &&
                  xc::plain_or_none(args[5], a.next_values) && xc::plain_output(args[7], a.returns) && in_unit_interval(gamma) &&
                  usable(a, false) && (a.rewards.is_f32() ? run<float>(a, gamma, 1, false) : run<double>(a, gamma, 1, false));
  return PyBool_FromLong(ok);
}

PyMethodDef methods[] = {
    xc::fast_method("gae", gae,
                    "gae(rewards, values, terminated, truncated, last_values, final_values, next_values, gamma, "
                    "gae_lambda, advantages, returns) -> bool\n\nSee xcfast.compute_gae. Returns False, with nothing "
                    "done, if an argument is not a plain array."),
    xc::fast_method("discounted_returns", discounted_returns,
                    "discounted_returns(rewards, terminated, truncated, last_values, final_values, next_values, gamma, "
                    "returns) -> bool\n\nSee xcfast.compute_returns. Returns False, with nothing done, if an argument "
                    "is not a plain array."),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_gae(pybind11::module_ &m) {
  if (PyModule_AddFunctions(m.ptr(), methods) < 0) throw pybind11::error_already_set();
}
