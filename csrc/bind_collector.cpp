// Binds collect/: checks arguments, releases the GIL, and keeps alive the memory that a call works on.
// xcfast/collectors/native.py is the wrapper, and admits one Python thread at a time.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind_envs.hpp"
#include "collect/collection.hpp"
#include "collect/evaluation.hpp"
#include "network_arg.hpp"

namespace {

using namespace xc;

// xcfast.rollout.EPISODE_DTYPE has the layout of Episode: four fields of 8 bytes.
static_assert(sizeof(Episode) == 32);

class EnvLoop {
 public:
  EnvLoop(py::object engine, const std::vector<LayerTuple> &layers, int actor_head, int critic_head, int64_t log_std, int64_t n_obs,
          int64_t n_parameters, collect::ActionMap map, py::dict normalizer, bool normalize, double clip)
      : keep_alive_(py::make_tuple(engine, normalizer)),
        bound_(engine.cast<EnvEngine &>()),
        policy_(make_network(layers, actor_head, critic_head, log_std, n_obs, n_parameters), std::move(map)),
        n_parameters_(n_parameters) {
    const envs::Engine &e = bound_.engine();
    const bool choice = e.num_actions() > 0;
    const int64_t width = choice ? e.num_actions() : e.action_size();
    if (policy_.categorical() != choice || policy_.network.action_size() != width || n_obs != e.obs_size())
      throw std::invalid_argument(std::string("the policy must be ") + (choice ? "Categorical" : "Gaussian") + " with " +
                                  std::to_string(e.obs_size()) + " observations and " + std::to_string(width) + " actions");
    const collect::ActionMap &m = policy_.action_map;
    const size_t w = choice ? 0 : size_t(width), mapped = m.scale.empty() ? 0 : w;
    if (m.low.size() != w || m.high.size() != w || m.scale.size() != mapped || m.offset.size() != mapped)
      throw std::invalid_argument("the action map must have " + std::to_string(w) + " actions");
    const int64_t dim = n_obs;
    const auto array = [&](const char *name) { return py::array(normalizer[name]); };
    normalizer_ = {normalize,
                   {checked<double>(array("mean"), "mean", dim, true), checked<double>(array("var"), "var", dim, true),
                    checked<int64_t>(array("count"), "count", 1, true)},
                   Epsilon(0),
                   clip,
                   nullptr,
                   nullptr,
                   nullptr};
  }

  void load(const py::array &parameters, const py::array &deviation, double epsilon, bool epsilon_outside) {
    const float *from = checked<float>(parameters, "parameters", n_parameters_);
    const float *std = checked<float>(deviation, "deviation", int64_t(policy_.deviation.size()));
    policy_.load(from, std);
    normalizer_.epsilon = Epsilon(epsilon, epsilon_outside);
  }

  // Prepares steps [begin, end) of a rollout, which run() then makes.
  void begin_collection(py::dict rollout, py::dict tracked, uint64_t seed, int64_t env_offset, py::array counters,
                        std::optional<py::array> ahead, int64_t begin, int64_t end) {
    const auto array = [&](const char *name) { return py::array(rollout[name]); };
    const envs::Engine &engine = bound_.engine();
    const int64_t n = engine.num_envs(), num_steps = py::len(rollout["rewards"]), cells = num_steps * n;
    if (begin < 0 || end < begin || end > num_steps)
      throw std::invalid_argument("steps must be within the rollout's " + std::to_string(num_steps) + "; got [" +
                                  std::to_string(begin) + ", " + std::to_string(end) + ")");
    const bool choice = policy_.categorical();
    const collect::RolloutRows rows{checked<float>(array("obs"), "obs", cells * engine.obs_size(), true),
                                    checked<float>(array("rewards"), "rewards", cells, true),
                                    choice ? nullptr : checked<float>(array("actions"), "actions", cells * engine.action_size(), true),
                                    choice ? checked<int64_t>(array("actions"), "actions", cells, true) : nullptr,
                                    reinterpret_cast<uint8_t *>(checked<bool>(array("terminated"), "terminated", cells, true)),
                                    reinterpret_cast<uint8_t *>(checked<bool>(array("truncated"), "truncated", cells, true)),
                                    checked<double>(array("episode_returns"), "episode_returns", n, true),
                                    checked<int64_t>(array("episode_lengths"), "episode_lengths", n, true)};
    const auto own = [&](const char *name) { return py::array(tracked[name]); };
    collect::Normalizer normalizer = normalizer_;
    normalizer.counts = checked<int64_t>(own("counts"), "counts", n, true);
    normalizer.means = checked<double>(own("means"), "means", n * engine.obs_size(), true);
    normalizer.m2s = checked<double>(own("m2s"), "m2s", n * engine.obs_size(), true);
    if (choice && ahead) throw std::invalid_argument("ahead must be None with a Categorical policy");
    const float *drawn = ahead ? checked<float>(*ahead, "ahead", (end - begin) * n * engine.action_size()) : nullptr;
    const collect::Noise noise{seed, env_offset, checked<int64_t>(counters, "counters", n, true), drawn};
    evaluation_.reset();
    collection_.reset();
    call_memory_ = py::make_tuple(rollout, tracked, counters, ahead);
    collection_ = std::make_unique<collect::Collection>(bound_.engine(), policy_, normalizer, rows, noise, begin, end,
                                                        bound_.pool().num_threads());
  }

  // Prepares `quota` episodes in each env, which run() then plays.
  void begin_evaluation(int64_t quota) {
    if (quota < 1) throw std::invalid_argument("quota must be positive; got " + std::to_string(quota));
    collection_.reset();
    evaluation_ = std::make_unique<collect::Evaluation>(bound_.engine(), policy_, normalizer_, quota, bound_.pool().num_threads());
  }

  // Works for about `seconds`. Returns whether everything is done. If not, the caller draws initial states for the envs that
  // have none left, and calls it again.
  bool run(double seconds) {
    if (!collection_ && !evaluation_) throw std::runtime_error("there is nothing to run");
    if (!(seconds >= 0 && seconds < 1e6)) throw std::invalid_argument("seconds must lie in [0, 1e6)");
    const auto limit = std::chrono::duration_cast<collect::Schedule::Clock::duration>(std::chrono::duration<double>(seconds));
    bool done, failed;
    {
      const py::gil_scoped_release no_gil;
      done = collection_ ? collection_->run(bound_.pool(), limit) : evaluation_->run(bound_.pool(), limit);
      failed = collection_ ? collection_->failed() : evaluation_->failed();
    }
    if (failed) {
      drop();
      bound_.raise_errors();
    }
    return done;
  }

  // Ends the collection. Returns its episodes (bytes of EPISODE_DTYPE), final_index int64 [K], final_obs float32 [K * D], and
  // the index t * N + env of the first final observation that is not finite, or -1.
  py::tuple end_collection() {
    if (!collection_) throw std::runtime_error("there is no collection to end");
    const auto ended = collection_->ended();
    drop();
    const auto *bytes = reinterpret_cast<const char *>(ended.episodes.data());
    return py::make_tuple(py::bytes(bytes, ended.episodes.size() * sizeof(Episode)),
                          py::array_t<int64_t>(py::ssize_t(ended.final_index.size()), ended.final_index.data()),
                          py::array_t<float>(py::ssize_t(ended.final_obs.size()), ended.final_obs.data()), ended.not_finite);
  }

  // The number of episodes of the evaluation that have ended.
  int64_t episodes_ended() const {
    if (!evaluation_) throw std::runtime_error("there is no evaluation");
    return evaluation_->ended();
  }

  // Ends the evaluation. Returns the returns of the episodes, float64 [N * quota], env by env.
  py::array end_evaluation() {
    if (!evaluation_) throw std::runtime_error("there is no evaluation to end");
    py::array_t<double> scores(py::ssize_t(evaluation_->scores().size()), evaluation_->scores().data());
    drop();
    return std::move(scores);
  }

 private:
  void drop() {
    collection_.reset();
    evaluation_.reset();
    call_memory_ = py::none();
  }

  py::object keep_alive_, call_memory_ = py::none();
  EnvEngine &bound_;
  collect::Policy policy_;
  collect::Normalizer normalizer_{false, {}, Epsilon(0), 0, nullptr, nullptr, nullptr};
  int64_t n_parameters_;
  std::unique_ptr<collect::Collection> collection_;
  std::unique_ptr<collect::Evaluation> evaluation_;
};

std::unique_ptr<EnvLoop> make_loop(py::object engine, const std::vector<LayerTuple> &layers, int actor_head, int critic_head,
                                   int64_t log_std, int64_t n_obs, int64_t n_parameters, std::vector<float> low, std::vector<float> high,
                                   std::vector<float> scale, std::vector<float> offset, py::dict normalizer, bool normalize,
                                   double clip) {
  collect::ActionMap map{std::move(low), std::move(high), std::move(scale), std::move(offset)};
  return std::make_unique<EnvLoop>(std::move(engine), layers, actor_head, critic_head, log_std, n_obs, n_parameters, std::move(map),
                                   std::move(normalizer), normalize, clip);
}

}  // namespace

void bind_collector(py::module_ &m) {
  py::class_<EnvLoop>(m, "EnvLoop", "Policy and EnvEngine in one loop; see xcfast/collectors/native.py.")
      .def(py::init(&make_loop), py::kw_only(), py::arg("engine"), py::arg("layers"), py::arg("actor_head"), py::arg("critic_head"),
           py::arg("log_std"), py::arg("n_obs"), py::arg("n_parameters"), py::arg("low"), py::arg("high"), py::arg("scale"),
           py::arg("offset"), py::arg("normalizer"), py::arg("normalize"), py::arg("clip"))
      .def("load", &EnvLoop::load, py::arg("parameters"), py::arg("deviation"), py::arg("epsilon"), py::arg("epsilon_outside"),
           "Sets the weights and the normalizer's settings for the following calls.")
      .def("begin_collection", &EnvLoop::begin_collection, py::kw_only(), py::arg("rollout"), py::arg("tracked"), py::arg("seed"), py::arg("env_offset"),
           py::arg("counters"), py::arg("ahead"), py::arg("begin"), py::arg("end"), "Prepares steps [begin, end) of a rollout.")
      .def("begin_evaluation", &EnvLoop::begin_evaluation, py::arg("quota"), "Prepares `quota` episodes in each env.")
      .def("run", &EnvLoop::run, py::arg("seconds"),
           "Works for about `seconds` on the prepared steps or episodes. Returns whether all of them are done; if not, "
           "draw initial states for the envs that have none left, and run again. Releases the GIL.")
      .def("episodes_ended", &EnvLoop::episodes_ended, "The number of episodes of the evaluation that have ended.")
      .def("end_collection", &EnvLoop::end_collection,
           "Ends the collection. Returns episodes (bytes), final_index int64 [K], final_obs float32 [K * D], and the index t * N + env of "
           "the first final observation that is not finite, or -1.")
      .def("end_evaluation", &EnvLoop::end_evaluation, "Ends the evaluation. Returns the returns of the episodes, "
                                                       "float64 [N * quota], env by env.");
}
