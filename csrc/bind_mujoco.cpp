// Binds mujoco/. xcfast/envs/mujoco_engine.py collects the arguments.
#include <pybind11/stl.h>

#include <algorithm>

#include "bind_envs.hpp"
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
                field("cinert"), field("cvel"), field("qfrc_actuator"), field("qfrc_constraint"), field("cfrc_ext")};
  return sim;
}

std::unique_ptr<EnvEngine> make_engine(const std::string &task, const py::dict &setup, const py::dict &api, const py::dict &config,
                                       const py::list &simulations, const py::dict &arrays, std::shared_ptr<ThreadPool> pool,
                                       py::object keep_alive) {
  const Setup s = make_setup(setup);
  Simulations::Config c;
  c.api = make_api(api);
  c.model = address<const void *>(config, "model");
  c.nq = s.nq;
  c.nv = s.nv;
  c.nu = s.nu;
  c.frame_skip = config["frame_skip"].cast<int64_t>();
  c.num_warnings = std::min<int64_t>(config["num_warnings"].cast<int64_t>(), kWarnings);
  c.warning_stride = config["warning_stride"].cast<int64_t>();
  const auto n = py::ssize_t(simulations.size());
  c.terms = reinterpret_cast<Terms *>(column<double>(arrays, "terms", n * py::ssize_t(sizeof(Terms) / sizeof(double))));
  c.warning_counts = column<int64_t>(arrays, "warning_counts", n * kWarnings);
  std::vector<Simulation> sims;
  sims.reserve(size_t(n));
  for (const auto &simulation : simulations) sims.push_back(make_simulation(simulation.cast<py::dict>()));
  auto dynamics = std::make_unique<Simulations>(c, make_task(task, s), std::move(sims));
  return std::make_unique<EnvEngine>(std::move(dynamics), config, arrays, std::move(pool), std::move(keep_alive));
}

}  // namespace

void bind_mujoco(py::module_ &m) {
  m.def("mujoco_engine", &make_engine, py::arg("task"), py::arg("setup"), py::arg("api"), py::arg("config"), py::arg("simulations"),
        py::arg("arrays"), py::arg("pool"), py::arg("keep_alive"),
        "Makes the engine of one MuJoCo task on one model; see xcfast/envs/mujoco_engine.py.");
  m.def("mujoco_errors_arrive", [](const py::dict &api) { return errors_arrive(make_api(api)); }, py::arg("api"),
        "Makes MuJoCo raise an error, and returns whether the engine's handlers catch it; `api` as for mujoco_engine.");
}
