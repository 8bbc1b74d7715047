// Binds envs/engine.hpp as EnvEngine, and the thread pool. xcfast/envs/native.py is the wrapper.
#include "bind_envs.hpp"

#include <pybind11/stl.h>

#include <atomic>

namespace {

using namespace xc;

// Finds the inner loop of a numpy ufunc from T to T in its public struct PyUFuncObject. Leaves `function` as it is if there
// is none.
template <class T>
void find_loop(const py::handle &numpy, const char *name, envs::Ufunc<T> &function) {
  struct Head {
    PyObject_HEAD
    int nin, nout, nargs, identity;
    typename envs::Ufunc<T>::Loop *functions;
    void *const *data;
    int ntypes, reserved;
    const char *name;
    const char *types;
  };
  const py::object ufunc = numpy.attr(name);
  if (!py::isinstance(ufunc, numpy.attr("ufunc"))) return;  // a script has replaced it
  const auto *head = reinterpret_cast<const Head *>(ufunc.ptr());
  constexpr char kType = sizeof(T) == 8 ? 12 : 11;  // NPY_DOUBLE, NPY_FLOAT
  if (head->nin != 1 || head->nout != 1 || head->nargs != 2) return;
  for (int k = 0; k < head->ntypes; ++k) {
    if (head->types[2 * k] != kType || head->types[2 * k + 1] != kType) continue;
    function.data = head->data ? head->data[k] : nullptr;
    function.loop = head->functions[k];
    return;
  }
}

}  // namespace

namespace xc {

envs::Numpy make_numpy() {
  envs::Numpy arithmetic;
  const auto numpy = py::module_::import("numpy");
  find_loop(numpy, "sin", arithmetic.sin);
  find_loop(numpy, "cos", arithmetic.cos);
  find_loop(numpy, "sin", arithmetic.sinf);
  find_loop(numpy, "cos", arithmetic.cosf);
  return arithmetic;
}

EnvEngine::EnvEngine(std::unique_ptr<envs::Dynamics> dynamics, const py::dict &config, const py::dict &arrays,
                     std::shared_ptr<ThreadPool> pool, py::object keep_alive)
    : pool_(std::move(pool)), keep_alive_(std::move(keep_alive)), arrays_(arrays) {
  envs::Engine::Config c;
  c.max_episode_steps = config["max_episode_steps"].cast<int64_t>();
  c.draws_capacity = config["draws_capacity"].cast<int64_t>();
  const envs::Sizes &sizes = dynamics->sizes();
  const py::ssize_t n = sizes.num_envs;
  if (const auto wanted = config["obs_size"].cast<int64_t>(); sizes.obs != wanted)
    throw std::invalid_argument("the model's observations have " + std::to_string(sizes.obs) + " numbers; the observation space wants " +
                                std::to_string(wanted));
  envs::Rows rows;
  rows.obs = column<double>(arrays, "obs", n * sizes.obs);
  rows.final_obs = column<double>(arrays, "final_obs", n * sizes.obs);
  actions_ = column<float>(arrays, "actions", n * sizes.action);
  rows.rewards = column<double>(arrays, "rewards", n);
  rows.terminated = reinterpret_cast<uint8_t *>(column<bool>(arrays, "terminated", n));
  rows.truncated = reinterpret_cast<uint8_t *>(column<bool>(arrays, "truncated", n));
  rows.episode_returns = column<double>(arrays, "episode_returns", n);
  rows.episode_lengths = column<int64_t>(arrays, "episode_lengths", n);
  rows.finished_returns = column<double>(arrays, "finished_returns", n);
  rows.finished_lengths = column<int64_t>(arrays, "finished_lengths", n);
  rows.elapsed = column<int64_t>(arrays, "elapsed", n);
  rows.draws = column<double>(arrays, "draws", n * c.draws_capacity * sizes.draw);
  rows.drawn = column<int64_t>(arrays, "drawn", n);
  rows.used = column<int64_t>(arrays, "used", n);
  engine_ = std::make_unique<envs::Engine>(c, std::move(dynamics), rows);
  vector_step_ = std::make_unique<envs::VectorStep>(engine_->sizes(), pool_->num_threads());
}

// Steps all envs with the actions in the caller's array. Returns 0 if no episode ended, 1 if one did, and 2 if one did and an
// env has no initial state left.
int EnvEngine::step(bool autoreset) {
  envs::VectorStep::Result result;
  {
    py::gil_scoped_release release;
    result = vector_step_->run(*engine_, *pool_, actions_, autoreset);
  }
  if (result.failed) raise_errors();
  return result.exhausted ? 2 : result.ended ? 1 : 0;
}

// Resets the envs in `indices` from their next initial states.
void EnvEngine::reset(const std::vector<int64_t> &indices) {
  envs::Engine &engine = *engine_;
  for (const int64_t i : indices)
    if (i < 0 || i >= engine.num_envs() || !engine.has_draw(i))
      throw std::invalid_argument("env " + std::to_string(i) + " must have an initial state drawn");
  std::atomic<bool> failed{false};
  {
    py::gil_scoped_release release;
    pool_->run(static_cast<int64_t>(indices.size()), [&](int64_t k) {
      const envs::Engine::Guard guard(engine);
      if (engine.reset_one(indices[size_t(k)]) == envs::Status::kFailed) failed.store(true, std::memory_order_relaxed);
    });
  }
  if (failed.load()) raise_errors();
}

void EnvEngine::raise_errors() {
  std::string first;
  int64_t index = -1;
  for (int64_t i = 0; i < engine_->num_envs(); ++i) {
    const std::string message = engine_->take_error(i);
    if (index >= 0 || message.empty()) continue;
    first = "environment " + std::to_string(i) + ": " + message;
    index = i;
  }
  const py::object type = py::module_::import("xcfast.errors").attr("SimulationError");
  PyErr_SetObject(type.ptr(), type(first, index).ptr());
  throw py::error_already_set();
}

}  // namespace xc

void bind_envs(py::module_ &m) {
  py::class_<ThreadPool, std::shared_ptr<ThreadPool>>(m, "ThreadPool", "A pool of threads that divides independent "
                                                                       "tasks among them.")
      .def(py::init<int>(), py::arg("num_threads"))
      .def_property_readonly("num_threads", &ThreadPool::num_threads)
      .def("stop", &ThreadPool::stop, py::call_guard<py::gil_scoped_release>(), "Ends the threads; the next use starts "
                                                                                "new ones.");
  py::class_<EnvEngine>(m, "EnvEngine", "N environments of one kind; see xcfast/envs/native.py. mujoco_engine and classic_engine make one.")
      .def("step", &EnvEngine::step, py::arg("autoreset"),
           "Steps all envs. Returns 0 if no episode ended, 1 if one did, 2 if one did and an env has no initial state "
           "left. Releases the GIL.")
      .def("reset", &EnvEngine::reset, py::arg("indices"), "Resets these envs from their next initial states. Releases "
                                                           "the GIL.");
}
