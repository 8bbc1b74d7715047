// Binds mujoco/. xcfast/envs/mujoco_engine.py collects the arguments.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "bind_envs.hpp"
#include "mujoco/own_task.hpp"
#include "mujoco/simulations.hpp"
#include "mujoco/tasks.hpp"

namespace {

using namespace xc;
using namespace xc::mujoco;

template <class T>
T address(const py::dict &from, const char *name) {
  return reinterpret_cast<T>(from[name].cast<uintptr_t>());
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
  setup.numpy = make_numpy();
  setup.numpy.fused_dot = from["fused_dot"].cast<bool>();
  setup.numpy.fused_einsum = from["fused_einsum"].cast<bool>();
  setup.values.numbers = from["values"].cast<std::unordered_map<std::string, double>>();
  return setup;
}

Api make_api(const py::dict &from) {
  Api api;
  api.step = address<Api::Function>(from, "mj_step");
  api.forward = address<Api::Function>(from, "mj_forward");
  api.reset_data = address<Api::Function>(from, "mj_resetData");
  api.rne_post_constraint = address<Api::Function>(from, "mj_rnePostConstraint");
  api.reset_data_keyframe = address<decltype(api.reset_data_keyframe)>(from, "mj_resetDataKeyframe");
  api.error = address<decltype(api.error)>(from, "mju_error");
  api.set_log_handler = address<decltype(api.set_log_handler)>(from, "set_log_handler");
  api.set_error_handler = address<decltype(api.set_error_handler)>(from, "set_error_handler");
  api.set_warning_handler = address<decltype(api.set_warning_handler)>(from, "set_warning_handler");
  api.set_process_log_handler = address<decltype(api.set_process_log_handler)>(from, "set_process_log_handler");
  api.process_error_handler = address<decltype(api.process_error_handler)>(from, "process_error_handler");
  return api;
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
                field("cinert"), field("cvel"), field("qfrc_actuator"), field("qfrc_constraint"), field("cfrc_ext"), nullptr};
  return sim;
}

// A user's task, on top of the built-in one of that name unless the name is empty. `envs` gets what it keeps for each environment, which
// the simulations point to.
std::unique_ptr<Task> make_own_task(const Setup &setup, const std::string &built_in, const py::dict &from, const py::dict &arrays,
                                    std::vector<Simulation> &simulations, std::vector<Own> &envs) {
  OwnFunctions own;
  own.before_step = address<OwnFunctions::Function>(from, "before_step");
  own.control = address<OwnFunctions::Function>(from, "control");
  own.step = address<OwnFunctions::Function>(from, "step");
  own.observe = address<OwnFunctions::Function>(from, "observe");
  own.constants = address<const void *>(from, "constants");
  own.obs_size = from["obs_size"].cast<int64_t>();
  own.action_size = from["action_size"].cast<int64_t>();
  own.memory_size = from["memory_size"].cast<int64_t>();
  own.contact_forces = from["contact_forces"].cast<bool>();
  own.terms = from["terms"].cast<std::vector<std::string>>();
  const auto fields = from["fields"].cast<std::vector<uintptr_t>>();
  const size_t n = simulations.size(), num_terms = own.terms.size();
  if (fields.size() != n) throw std::invalid_argument("fields must have an entry for each environment");
  const auto column_of = [&](const char *name, size_t width) { return column<double>(arrays, name, py::ssize_t(n * width)); };
  double *memory = column_of("own_memory", size_t(own.memory_size)), *terms = column_of("own_terms", num_terms);
  double *sums = column_of("own_sums", 1 + num_terms), *action = column_of("own_action", size_t(own.action_size));
  auto task = std::make_unique<OwnTask>(setup, own, built_in.empty() ? nullptr : make_task(built_in, setup));
  const size_t obs_size = size_t(task->obs_size());
  double *obs = column_of("own_obs", obs_size);
  envs.resize(n);
  for (size_t i = 0; i < n; ++i) {
    envs[i] = {reinterpret_cast<const void *const *>(fields[i]), memory + i * size_t(own.memory_size), terms + i * num_terms,
               sums + i * (1 + num_terms), action + i * size_t(own.action_size), obs + i * obs_size, nullptr};
    simulations[i].fields.own = &envs[i];
  }
  return task;
}

std::unique_ptr<EnvEngine> make_engine(const std::string &task, const py::dict &setup, const py::dict &api, const py::dict &config,
                                       const py::list &simulations, const py::dict &arrays, std::shared_ptr<ThreadPool> pool,
                                       py::object keep_alive, const std::optional<py::dict> &own) {
  const Setup s = make_setup(setup);
  Simulations::Config c;
  c.api = make_api(api);
  c.model = address<const void *>(config, "model");
  c.nq = s.nq;
  c.nv = s.nv;
  c.nu = s.nu;
  c.frame_skip = config["frame_skip"].cast<int64_t>();
  c.keyframe = config["keyframe"].cast<int>();
  c.num_warnings = std::min<int64_t>(config["num_warnings"].cast<int64_t>(), kWarnings);
  c.warning_stride = config["warning_stride"].cast<int64_t>();
  const auto n = py::ssize_t(simulations.size());
  c.terms = reinterpret_cast<Terms *>(column<double>(arrays, "terms", n * py::ssize_t(sizeof(Terms) / sizeof(double))));
  c.warning_counts = column<int64_t>(arrays, "warning_counts", n * kWarnings);
  std::vector<Simulation> sims;
  sims.reserve(size_t(n));
  for (const auto &simulation : simulations) sims.push_back(make_simulation(simulation.cast<py::dict>()));
  std::vector<Own> envs;
  auto made = own ? make_own_task(s, task, *own, arrays, sims, envs) : make_task(task, s);
  auto dynamics = std::make_unique<Simulations>(c, std::move(made), std::move(sims), std::move(envs));
  return std::make_unique<EnvEngine>(std::move(dynamics), config, arrays, std::move(pool), std::move(keep_alive));
}

}  // namespace

void bind_mujoco(py::module_ &m) {
  m.def("mujoco_engine", &make_engine, py::arg("task"), py::arg("setup"), py::arg("api"), py::arg("config"), py::arg("simulations"),
        py::arg("arrays"), py::arg("pool"), py::arg("keep_alive"), py::arg("own") = py::none(),
        "Makes the engine of one MuJoCo task on one model, or of a user's (`own`); see xcfast/envs/mujoco_engine.py.");
  m.def("mujoco_errors_arrive", [](const py::dict &api) { return errors_arrive(make_api(api)); }, py::arg("api"),
        "Makes MuJoCo raise an error, and returns whether the engine's handlers catch it; `api` as for mujoco_engine.");
}
