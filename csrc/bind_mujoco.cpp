// Binds mujoco/engine.hpp as MujocoEngine, and the pool. xcfast/envs/mujoco_engine.py collects what the constructor takes.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cstring>

#include "bind_mujoco.hpp"
#include "mujoco/tasks.hpp"

namespace {

using namespace xc::mujoco;
namespace py = pybind11;

template <class T>
T address(const py::dict &from, const char *name) {
  return reinterpret_cast<T>(from[name].cast<uintptr_t>());
}

// The inner loop of a ufunc for doubles, from the head of numpy's public PyUFuncObject; null if there is none.
Numpy::Loop double_loop(const py::handle &ufunc, void *&data) {
  struct Head {
    PyObject_HEAD
    int nin, nout, nargs, identity;
    Numpy::Loop *functions;
    void *const *data;
    int ntypes, reserved;
    const char *name;
    const char *types;
  };
  const auto *head = reinterpret_cast<const Head *>(ufunc.ptr());
  constexpr char kDouble = 12;  // NPY_DOUBLE
  if (head->nin != 1 || head->nout != 1 || head->nargs != 2) return nullptr;
  for (int k = 0; k < head->ntypes; ++k) {
    if (head->types[2 * k] != kDouble || head->types[2 * k + 1] != kDouble) continue;
    data = head->data ? head->data[k] : nullptr;
    return head->functions[k];
  }
  return nullptr;
}

template <class T>
T *column(const py::dict &arrays, const char *name, py::ssize_t wanted_size) {
  auto array = arrays[name].cast<py::array>();
  const bool fits = py::dtype::of<T>().is(array.dtype()) && (array.flags() & py::array::c_style) && array.writeable();
  if (!fits || array.size() != wanted_size)
    throw std::invalid_argument(std::string(name) + " must be a writable C-contiguous array of its type with " +
                                std::to_string(wanted_size) + " elements; got " + std::to_string(array.size()));
  return static_cast<T *>(array.mutable_data());
}

Setup make_setup(const py::dict &from) {
  Setup setup;
  setup.nq = from["nq"].cast<int64_t>();
  setup.nv = from["nv"].cast<int64_t>();
  setup.nu = from["nu"].cast<int64_t>();
  setup.nbody = from["nbody"].cast<int64_t>();
  setup.body_mass = address<const double *>(from, "body_mass");
  setup.body_mass_sum = from["body_mass_sum"].cast<double>();
  setup.dt = from["dt"].cast<double>();
  setup.v5 = from["v5"].cast<bool>();
  setup.numpy.fused_dot = from["fused_dot"].cast<bool>();
  setup.numpy.fused_einsum = from["fused_einsum"].cast<bool>();
  const auto numpy = py::module_::import("numpy");
  setup.numpy.sin = double_loop(numpy.attr("sin"), setup.numpy.sin_data);
  setup.numpy.cos = double_loop(numpy.attr("cos"), setup.numpy.cos_data);
  setup.values = from["values"].cast<std::unordered_map<std::string, double>>();
  return setup;
}

Simulation make_simulation(const py::dict &from) {
  Simulation sim;
  sim.data = address<void *>(from, "data");
  sim.qpos = address<double *>(from, "qpos");
  sim.qvel = address<double *>(from, "qvel");
  sim.ctrl = address<double *>(from, "ctrl");
  sim.warnings = address<const char *>(from, "warnings");
  const auto field = [&](const char *name) { return address<const double *>(from, name); };
  sim.fields = {sim.qpos,        sim.qvel,      sim.ctrl,      field("xpos"),          field("xipos"),           field("site_xpos"),
                field("cinert"), field("cvel"), field("qfrc_actuator"), field("qfrc_constraint"), field("cfrc_ext")};
  return sim;
}

}  // namespace

namespace xc {

MujocoEngine::MujocoEngine(const std::string &task, const py::dict &setup, const py::dict &api, const py::dict &config,
                           const py::list &simulations, const py::dict &arrays, std::shared_ptr<ThreadPool> pool, py::object keep_alive)
    : pool_(std::move(pool)), keep_alive_(std::move(keep_alive)), arrays_(arrays) {
  const Setup s = make_setup(setup);
  Engine::Config c;
  c.api.step = address<Api::Function>(api, "mj_step");
  c.api.forward = address<Api::Function>(api, "mj_forward");
  c.api.reset_data = address<Api::Function>(api, "mj_resetData");
  c.api.rne_post_constraint = address<Api::Function>(api, "mj_rnePostConstraint");
  c.api.set_log_handler = address<decltype(c.api.set_log_handler)>(api, "set_log_handler");
  c.api.set_error_handler = address<decltype(c.api.set_error_handler)>(api, "set_error_handler");
  c.api.set_warning_handler = address<decltype(c.api.set_warning_handler)>(api, "set_warning_handler");
  c.model = address<const void *>(config, "model");
  c.nq = s.nq;
  c.nv = s.nv;
  c.nu = s.nu;
  c.frame_skip = config["frame_skip"].cast<int64_t>();
  c.max_episode_steps = config["max_episode_steps"].cast<int64_t>();
  c.draws_capacity = config["draws_capacity"].cast<int64_t>();
  c.num_warnings = std::min<int64_t>(config["num_warnings"].cast<int64_t>(), kWarnings);
  c.warning_stride = config["warning_stride"].cast<int64_t>();
  auto made = make_task(task, s);

  const py::ssize_t n = static_cast<py::ssize_t>(simulations.size()), d = made->obs_size();
  if (const auto wanted = config["obs_size"].cast<int64_t>(); d != wanted)
    throw std::invalid_argument("the model's observations have " + std::to_string(d) + " numbers; the observation space wants " +
                                std::to_string(wanted));
  std::vector<Simulation> sims;
  sims.reserve(n);
  for (const auto &simulation : simulations) sims.push_back(make_simulation(simulation.cast<py::dict>()));
  Rows rows;
  rows.obs = column<double>(arrays, "obs", n * d);
  rows.final_obs = column<double>(arrays, "final_obs", n * d);
  actions_ = column<float>(arrays, "actions", n * c.nu);
  rows.rewards = column<double>(arrays, "rewards", n);
  rows.terminated = reinterpret_cast<uint8_t *>(column<bool>(arrays, "terminated", n));
  rows.truncated = reinterpret_cast<uint8_t *>(column<bool>(arrays, "truncated", n));
  rows.episode_returns = column<double>(arrays, "episode_returns", n);
  rows.episode_lengths = column<int64_t>(arrays, "episode_lengths", n);
  rows.finished_returns = column<double>(arrays, "finished_returns", n);
  rows.finished_lengths = column<int64_t>(arrays, "finished_lengths", n);
  rows.elapsed = column<int64_t>(arrays, "elapsed", n);
  rows.draws = column<double>(arrays, "draws", n * c.draws_capacity * (c.nq + c.nv));
  rows.drawn = column<int64_t>(arrays, "drawn", n);
  rows.used = column<int64_t>(arrays, "used", n);
  rows.terms = reinterpret_cast<Terms *>(column<double>(arrays, "terms", n * sizeof(Terms) / sizeof(double)));
  rows.warning_counts = column<int64_t>(arrays, "warning_counts", n * kWarnings);
  engine_ = std::make_unique<Engine>(c, std::move(made), std::move(sims), rows);
}

// Steps all envs with the actions array: 0: no episode ended, 1: some did, 2: and some env has no initial state left.
int MujocoEngine::step(bool autoreset) {
  Engine &engine = *engine_;
  std::atomic<int> ended{0}, failed{0};
  {
    py::gil_scoped_release release;
    const int64_t nu = engine.action_size();
    pool_->run(engine.num_envs(), [&](int64_t i) {
      Guard guard(engine.api());
      const Step step = engine.step_one(i, actions_ + i * nu, autoreset);
      if (step.status == Status::kRunning) return;
      if (step.status == Status::kFailed) failed.store(1, std::memory_order_relaxed);
      const bool empty = autoreset && !engine.has_draw(i);
      int before = ended.load(std::memory_order_relaxed);
      const int now = empty ? 2 : 1;
      while (before < now && !ended.compare_exchange_weak(before, now, std::memory_order_relaxed)) {
      }
    });
  }
  if (failed.load()) raise_errors();
  return ended.load();
}

// Resets the envs of `indices` from their next initial states.
void MujocoEngine::reset(const std::vector<int64_t> &indices) {
  Engine &engine = *engine_;
  for (const int64_t i : indices)
    if (i < 0 || i >= engine.num_envs() || !engine.has_draw(i))
      throw std::invalid_argument("env " + std::to_string(i) + " must have an initial state drawn");
  std::atomic<bool> failed{false};
  {
    py::gil_scoped_release release;
    pool_->run(static_cast<int64_t>(indices.size()), [&](int64_t k) {
      Guard guard(engine.api());
      if (engine.reset_one(indices[k]) == Status::kFailed) failed.store(true, std::memory_order_relaxed);
    });
  }
  if (failed.load()) raise_errors();
}

void MujocoEngine::raise_errors() {
  std::string first;
  int64_t index = -1;
  for (int64_t i = 0; i < engine_->num_envs(); ++i) {
    const std::string message = engine_->take_error(i);
    if (index >= 0 || message.empty()) continue;
    first = "MuJoCo raised an error in environment " + std::to_string(i) + ": " + message;
    index = i;
  }
  const py::object type = py::module_::import("xcfast.envs.errors").attr("SimulationError");
  PyErr_SetObject(type.ptr(), type(first, index).ptr());
  throw py::error_already_set();
}

}  // namespace xc

void bind_mujoco(py::module_ &m) {
  py::class_<xc::ThreadPool, std::shared_ptr<xc::ThreadPool>>(m, "ThreadPool", "Threads that share out independent tasks.")
      .def(py::init<int>(), py::arg("num_threads"))
      .def_property_readonly("num_threads", &xc::ThreadPool::num_threads)
      .def("stop", &xc::ThreadPool::stop, py::call_guard<py::gil_scoped_release>(), "End the threads; the next use starts new ones.");
  py::class_<xc::MujocoEngine>(m, "MujocoEngine", "N environments of one task on one model; see xcfast/envs/mujoco_engine.py.")
      .def(py::init<const std::string &, const py::dict &, const py::dict &, const py::dict &, const py::list &, const py::dict &,
                    std::shared_ptr<xc::ThreadPool>, py::object>(),
           py::arg("task"), py::arg("setup"), py::arg("api"), py::arg("config"), py::arg("simulations"), py::arg("arrays"), py::arg("pool"),
           py::arg("keep_alive"))
      .def("step", &xc::MujocoEngine::step, py::arg("autoreset"),
           "Step all envs. Returns 0: no episode ended, 1: some did, 2: and some env has no initial state left. Releases the GIL.")
      .def("reset", &xc::MujocoEngine::reset, py::arg("indices"), "Reset these envs from their next initial states. Releases the GIL.");
}
