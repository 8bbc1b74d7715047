// Binds nn/learner.hpp: argument checks, GIL release, and the guard against use from two threads at once.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "network_arg.hpp"
#include "nn/half.hpp"
#include "nn/learner.hpp"

namespace py = pybind11;
using namespace xc;

namespace {

nn::Precision find_precision(const std::string &name) {
  if (name == "fp32") return nn::Precision::fp32;
  if (name == "bf16x3") return nn::Precision::bf16x3;
  if (name == "bf16") return nn::Precision::bf16;
  throw std::invalid_argument("precision must be 'fp32', 'bf16x3' or 'bf16'; got '" + name + "'");
}

// The kernels of that name. Without a name the best ones, but not an emulation, which must be asked for.
const nn::Kernels &find_kernels(const std::string &precision, const std::optional<std::string> &name) {
  const auto &available = nn::available_kernels(find_precision(precision));
  if (!name && available.back()->emulated)
    throw std::invalid_argument("precision '" + precision + "' needs a CPU with AMX tiles" + (precision == "bf16" ? " or AVX512_BF16" : ""));
  if (!name) return *available.back();
  for (const nn::Kernels *kernels : available)
    if (*name == kernels->name) return *kernels;
  throw std::invalid_argument("variant must be one of nn_variants('" + precision + "'); got '" + *name + "'");
}

// Lets Python run its signal handlers every 100 ms while the GIL is released, and throws the exception that they raise, so
// that a second Ctrl-C ends a long update.
class SignalCheck {
 public:
  void operator()() {
    const auto now = Clock::now();
    if (now < next_) return;
    next_ = now + kInterval;
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kInterval{100};
  Clock::time_point next_ = Clock::now() + kInterval;
};

class BoundLearner {
 public:
  BoundLearner(const std::vector<LayerTuple> &layers, int actor_head, int critic_head, int64_t log_std, int64_t n_obs,
               py::array parameters, py::array exp_avg, py::array exp_avg_sq, std::tuple<double, double, double> loss,
               std::tuple<double, double, double> adam, int64_t max_minibatch, int num_threads, bool kl_penalty,
               const std::string &precision, const std::optional<std::string> &variant, double value_range)
      : parameters_(parameters), exp_avg_(exp_avg), exp_avg_sq_(exp_avg_sq) {
    const int64_t size = parameters.size();
    if (!(value_range > 0)) throw std::invalid_argument("value_range must be positive; got " + std::to_string(value_range));
    if (max_minibatch < 1) throw std::invalid_argument("max_minibatch must be positive; got " + std::to_string(max_minibatch));
    const nn::Parameters memory{checked<float>(parameters, "parameters", size, true), checked<float>(exp_avg, "exp_avg", size, true),
                                checked<float>(exp_avg_sq, "exp_avg_sq", size, true)};
    learner_ = std::make_unique<nn::Learner>(
        make_network(layers, actor_head, critic_head, log_std, n_obs, size), memory,
        nn::LossSettings{std::get<0>(loss), std::get<1>(loss), std::get<2>(loss), kl_penalty, 0, value_range},
        nn::AdamSettings{std::get<0>(adam), std::get<1>(adam), std::get<2>(adam)}, max_minibatch, num_threads,
        find_kernels(precision, variant), SignalCheck{});
  }

  double kl_coef() const { return learner_->loss().kl_coef; }
  void set_kl_coef(double kl_coef) {
    call([&] { learner_->set_kl_coef(kl_coef); });
  }

  py::array gradient(py::object self) { return py::array_t<float>(learner_->network().n_parameters, learner_->gradient(), self); }

  std::tuple<py::array, py::array> evaluate(const py::array &obs, const py::array &actions,
                                            const std::optional<py::array> &action_masks) {
    nn::Rows rows = make_rows(obs, actions, num_rows(obs), action_masks);
    py::array_t<float> values(rows.size), log_probs(rows.size);
    float *v = values.mutable_data(), *p = log_probs.mutable_data();
    call([&] {
      learner_->pack();
      learner_->evaluate(rows, v, p);
    });
    return {values, log_probs};
  }

  std::vector<double> compute_gradients(const py::array &obs, const py::array &actions, const py::array &log_probs,
                                        const py::array &advantages, const py::array &returns, bool normalize_advantages,
                                        const std::optional<py::array> &indices, const std::optional<py::array> &old_outputs,
                                        const std::optional<py::array> &old_log_std, const std::optional<py::array> &action_masks,
                                        const std::optional<py::array> &old_values) {
    const int64_t rows = num_rows(obs), n_actions = learner_->network().action_size();
    nn::Batch batch{make_rows(obs, actions, rows, action_masks), checked<float>(log_probs, "log_probs", rows),
                    checked<float>(advantages, "advantages", rows), checked<float>(returns, "returns", rows), nullptr, rows};
    if (indices) {
      batch.total = batch.size = indices->size();
      batch.index = checked<int64_t>(*indices, "indices", batch.size);
      for (int64_t i = 0; i < batch.size; ++i)
        if (batch.index[i] < 0 || batch.index[i] >= rows) throw std::invalid_argument("indices must lie within the rows of obs");
    }
    if (batch.size < 1) throw std::invalid_argument("a minibatch needs at least one row");
    if (learner_->loss().kl_penalty) {
      const bool gaussian = !learner_->network().categorical();
      if (!old_outputs || (gaussian && !old_log_std)) throw std::invalid_argument("the penalty needs old_outputs, and "
                                                                                  "old_log_std for a Gaussian policy");
      batch.old.outputs = checked<float>(*old_outputs, "old_outputs", rows * n_actions);
      if (gaussian) batch.old.log_std = checked<float>(*old_log_std, "old_log_std", n_actions);
    }
    if (std::isfinite(learner_->loss().value_range)) {
      if (!old_values) throw std::invalid_argument("the clipped value loss needs old_values");
      batch.old_values = checked<float>(*old_values, "old_values", rows);
    }
    nn::LossSums sums;
    call([&] {
      learner_->pack();
      nn::AdvantageMoments moments;
      if (normalize_advantages) moments = nn::advantage_sums(batch.advantages, batch.index, batch.size).moments();
      sums = learner_->compute_gradients(batch, moments);
    });
    const double n = double(batch.size);
    return {sums.policy / n, sums.value / n, sums.entropy / n, sums.approx_kl / n, sums.clipped / n, sums.kl / n};
  }

  double apply(double learning_rate, double max_norm, int64_t step) {
    double norm = 0;
    call([&] { norm = learner_->apply(learning_rate, max_norm, step); });
    return norm;
  }

  std::vector<double> update(const py::dict &rollout, double gamma, double gae_lambda, bool normalize_advantages, double max_norm,
                             uint64_t seed, uint32_t iteration, int64_t n_epochs, int64_t n_minibatch, const py::array &learning_rates,
                             int64_t steps_done, double max_approx_kl) {
    const nn::RolloutView view = make_view(rollout);
    const int64_t samples = view.num_steps * view.num_envs;
    if (n_epochs < 1 || n_minibatch < 1 || n_minibatch > samples) throw std::invalid_argument("n_epochs and n_minibatch must be positive, and n_minibatch at most the number of samples");
    const nn::UpdateSettings settings{gamma,     gae_lambda, normalize_advantages,
                                      max_norm,  seed,       iteration,
                                      n_epochs,  n_minibatch, 0,
                                      checked<double>(learning_rates, "learning_rates", n_epochs * n_minibatch),
                                      steps_done, max_approx_kl};
    nn::UpdateSums sums;
    call([&] {
      begun_ = {};
      sums = learner_->update(view, settings);
    });
    const double n = double(samples * sums.epochs);
    return {sums.losses.policy / n,
            sums.losses.value / n,
            sums.losses.entropy / n,
            sums.losses.approx_kl / n,
            sums.losses.clipped / n,
            sums.last_kl / double(samples),
            sums.grad_norm / double(sums.epochs * n_minibatch),
            double(sums.epochs)};
  }

  py::array begin_update(const py::dict &rollout, double gamma, double gae_lambda, bool normalize_advantages, uint64_t seed,
                         uint32_t iteration, int64_t n_epochs, int64_t n_minibatch, int64_t env_offset) {
    if (n_epochs < 1 || n_minibatch < 1 || env_offset < 0) throw std::invalid_argument("n_epochs and n_minibatch must be positive, and env_offset must not be negative");
    const nn::RolloutView view = make_view(rollout);
    const nn::UpdateSettings settings{gamma,    gae_lambda,  normalize_advantages, 0,       seed, iteration,
                                      n_epochs, n_minibatch, env_offset,           nullptr, 0};
    call([&] {
      begun_ = {};
      learner_->begin(view, settings);
      begun_ = {view, settings};
    });
    begun_rollout_ = rollout;
    const auto &sums = learner_->advantages();
    py::array_t<double> result({py::ssize_t(sums.size()), py::ssize_t(3)});
    static_assert(sizeof(nn::AdvantageSums) == 3 * sizeof(double));
    std::copy_n(reinterpret_cast<const double *>(sums.data()), 3 * sums.size(), result.mutable_data());
    return result;
  }

  std::vector<double> minibatch_gradients(int64_t index, int64_t total, double mean, double square) {
    nn::LossSums sums;
    call([&] {
      const nn::UpdateSettings &settings = begun_.settings;
      if (index < 0 || index >= settings.n_epochs * settings.n_minibatch || total < 1)
        throw std::invalid_argument("index must be a minibatch of the update that begin_update started, and total must be positive");
      nn::Batch batch = learner_->minibatch(begun_.rollout, settings, index);
      batch.total = total;
      nn::AdvantageMoments moments;
      if (settings.normalize_advantages) moments = nn::AdvantageSums{double(total), mean, square}.moments();
      sums = learner_->compute_gradients(batch, moments);
    });
    return {sums.policy, sums.value, sums.entropy, sums.approx_kl, sums.clipped, sums.kl};
  }

 private:
  // The update that begin_update started; it has no minibatches before that.
  struct Begun {
    nn::RolloutView rollout{};
    nn::UpdateSettings settings{};
  };

  nn::RolloutView make_view(const py::dict &rollout) const {
    auto get = [&](const char *name) { return py::array(rollout[name]); };
    const py::array rewards = get("rewards"), final_index = get("final_index"), obs = get("obs"), actions = get("actions");
    if (rewards.ndim() != 2) throw std::invalid_argument("rewards must be [T, N]");
    const int64_t n_obs = learner_->network().n_obs;
    nn::RolloutView view{};
    view.num_steps = rewards.shape(0);
    view.num_envs = rewards.shape(1);
    view.num_finals = final_index.size();
    const int64_t samples = view.num_steps * view.num_envs;
    std::optional<py::array> action_masks;
    if (rollout.contains("action_masks")) action_masks = get("action_masks");
    const nn::Rows rows = make_rows(obs, actions, samples, action_masks);
    view.obs = rows.obs;
    view.actions = rows.actions;
    view.discrete_actions = rows.discrete_actions;
    view.action_masks = rows.action_masks;
    view.rewards = checked<float>(rewards, "rewards", samples);
    view.last_obs = checked<float>(get("last_obs"), "last_obs", view.num_envs * n_obs);
    view.final_obs = checked<float>(get("final_obs"), "final_obs", view.num_finals * n_obs);
    view.final_index = checked<int64_t>(final_index, "final_index", view.num_finals);
    view.terminated = reinterpret_cast<const uint8_t *>(checked<bool>(get("terminated"), "terminated", samples));
    view.truncated = reinterpret_cast<const uint8_t *>(checked<bool>(get("truncated"), "truncated", samples));
    view.values = checked<float>(get("values"), "values", samples, true);
    view.log_probs = checked<float>(get("log_probs"), "log_probs", samples, true);
    view.advantages = checked<float>(get("advantages"), "advantages", samples, true);
    view.returns = checked<float>(get("returns"), "returns", samples, true);
    for (int64_t i = 0; i < view.num_finals; ++i)
      if (view.final_index[i] < 0 || view.final_index[i] >= samples) throw std::invalid_argument("final_index must lie within the rollout");
    return view;
  }

  int64_t num_rows(const py::array &obs) const { return obs.size() / learner_->network().n_obs; }

  nn::Rows make_rows(const py::array &obs, const py::array &actions, int64_t rows, const std::optional<py::array> &action_masks) const {
    const nn::Network &network = learner_->network();
    nn::Rows made{checked<float>(obs, "obs", rows * network.n_obs), nullptr, nullptr, rows};
    if (!network.categorical()) {
      if (action_masks) throw std::invalid_argument("action_masks are for a Categorical policy; this one is Gaussian");
      made.actions = checked<float>(actions, "actions", rows * network.action_size());
      return made;
    }
    made.discrete_actions = checked<int64_t>(actions, "actions", rows);
    for (int64_t i = 0; i < rows; ++i)
      if (made.discrete_actions[i] < 0 || made.discrete_actions[i] >= network.action_size())
        throw std::invalid_argument("actions must be in [0, " + std::to_string(network.action_size()) + "); got " +
                                    std::to_string(made.discrete_actions[i]));
    if (!action_masks) return made;
    made.action_masks = reinterpret_cast<const uint8_t *>(checked<bool>(*action_masks, "action_masks", rows * network.action_size()));
    for (int64_t i = 0; i < rows; ++i)
      if (!made.mask(i, network.action_size())[made.discrete_actions[i]])
        throw std::invalid_argument("action_masks must allow the actions that were taken; row " + std::to_string(i) + " forbids " +
                                    std::to_string(made.discrete_actions[i]));
    return made;
  }

  template <class F>
  void call(F &&f) {
    if (busy_.test_and_set()) throw std::runtime_error("this learner is in use by another thread");
    struct Release {
      std::atomic_flag &flag;
      ~Release() { flag.clear(); }
    } release{busy_};
    py::gil_scoped_release no_gil;
    f();
  }

  py::array parameters_, exp_avg_, exp_avg_sq_;  // keep the memory alive
  std::unique_ptr<nn::Learner> learner_;
  Begun begun_;
  py::dict begun_rollout_;  // keeps the memory alive
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

py::array_t<float> activation(int number, const py::array &x, const std::optional<std::string> &variant) {
  if (number < 0 || number > int(nn::Activation::softmax)) throw std::invalid_argument("activation is unknown");
  const int64_t rows = x.size() / nn::kPanel;
  const float *from = checked<float>(x, "x", rows * nn::kPanel);
  py::array_t<float> y(rows * nn::kPanel);
  std::copy(from, from + rows * nn::kPanel, y.mutable_data());
  find_kernels("fp32", variant).activate(nn::Activation(number), {y.mutable_data(), rows * nn::kPanel, rows, nn::kPanel});
  return y;
}

}  // namespace

void bind_nn(py::module_ &m) {
  py::class_<BoundLearner>(m, "Learner", "The PPO update on all cores; xcfast.learners.native.NativeLearner is its wrapper.")
      .def(py::init<const std::vector<LayerTuple> &, int, int, int64_t, int64_t, py::array, py::array, py::array,
                    std::tuple<double, double, double>, std::tuple<double, double, double>, int64_t, int, bool,
                    const std::string &, const std::optional<std::string> &, double>(),
           py::kw_only(), py::arg("layers"), py::arg("actor_head"), py::arg("critic_head"), py::arg("log_std"), py::arg("n_obs"),
           py::arg("parameters"), py::arg("exp_avg"), py::arg("exp_avg_sq"), py::arg("loss"), py::arg("adam"), py::arg("max_minibatch"),
           py::arg("num_threads"), py::arg("kl_penalty") = false, py::arg("precision") = "fp32",
           py::arg("variant") = py::none(), py::arg("value_range") = std::numeric_limits<double>::infinity())
      .def_property("kl_coef", &BoundLearner::kl_coef, &BoundLearner::set_kl_coef, "Weight of the KL penalty, if there "
                                                                                   "is one.")
      .def_property_readonly(
          "gradient", [](py::object self) { return self.cast<BoundLearner &>().gradient(self); },
          "float32 [parameters], the learner's own memory: compute_gradients writes it, apply reads it.")
      .def("evaluate", &BoundLearner::evaluate, py::arg("obs"), py::arg("actions"), py::arg("action_masks") = py::none(),
           "values [B], log_probs [B]")
      .def("compute_gradients", &BoundLearner::compute_gradients, py::arg("obs"), py::arg("actions"), py::arg("log_probs"),
           py::arg("advantages"), py::arg("returns"), py::arg("normalize_advantages"), py::arg("indices") = py::none(),
           py::arg("old_outputs") = py::none(), py::arg("old_log_std") = py::none(), py::arg("action_masks") = py::none(),
           py::arg("old_values") = py::none(),
           "Writes the gradient of a minibatch to `gradient`. Returns means over the minibatch: policy loss, value "
           "loss, entropy, approximate KL, clipped fraction, KL of the penalty.")
      .def("apply", &BoundLearner::apply, py::arg("learning_rate"), py::arg("max_norm"), py::arg("step"),
           "Limits the norm of `gradient` and takes Adam step number `step`, from 1. Returns the norm before it was "
           "limited.")
      .def("update", &BoundLearner::update, py::kw_only(), py::arg("rollout"), py::arg("gamma"), py::arg("gae_lambda"),
           py::arg("normalize_advantages"), py::arg("max_norm"), py::arg("seed"), py::arg("iteration"), py::arg("n_epochs"),
           py::arg("n_minibatch"), py::arg("learning_rates"), py::arg("steps_done"),
           py::arg("max_approx_kl") = std::numeric_limits<double>::infinity(),
           "Does the whole update, up to the first epoch whose mean approximate KL is above max_approx_kl. Returns the "
           "means of compute_gradients over all samples (the KL of the penalty over those of the last epoch), the mean "
           "norm, and the number of epochs.")
      .def("begin_update", &BoundLearner::begin_update, py::kw_only(), py::arg("rollout"), py::arg("gamma"), py::arg("gae_lambda"),
           py::arg("normalize_advantages"), py::arg("seed"), py::arg("iteration"), py::arg("n_epochs"), py::arg("n_minibatch"),
           py::arg("env_offset"),
           "Begins an update in parts, for one rank's envs. Returns float64 [n_epochs * n_minibatch, 3]: the number, "
           "the mean and the sum of squared deviations of the advantages in this rank's part of each minibatch; zeros "
           "if advantages are not normalized.")
      .def("minibatch_gradients", &BoundLearner::minibatch_gradients, py::arg("index"), py::arg("total"), py::arg("mean"), py::arg("square"),
           "Writes the gradient of this rank's part of a minibatch, a sum divided by `total`, to `gradient`. Returns "
           "the sums whose means compute_gradients returns. mean and square are those of the advantages of the whole "
           "minibatch.");
  m.def("nn_activation", &activation, py::arg("activation"), py::arg("x"), py::arg("variant") = py::none(),
        "Applies an activation (by its number in nn/types.hpp) to float32 [16 n], as rows of 16; for tests of accuracy.");
  m.def("nn_variants", [](const std::string &precision) {
    std::vector<std::string> names;
    for (const nn::Kernels *kernels : nn::available_kernels(find_precision(precision))) names.push_back(kernels->name);
    return names;
  }, py::arg("precision") = "fp32", "Returns the variants of the learner in a precision that this machine can run, emulations "
                                    "included, the best one last.");
  m.def("nn_hardware", [](const std::string &precision) -> std::optional<std::string> {
    const nn::Kernels &best = *nn::available_kernels(find_precision(precision)).back();
    return best.emulated ? std::nullopt : std::optional<std::string>(best.name);
  }, py::arg("precision"), "Returns the variant that a precision has by default on this machine; None if it can only be emulated.");
}
