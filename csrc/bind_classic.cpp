// Binds classic/. xcfast/envs/classic_tasks.py collects the arguments.
#include <pybind11/stl.h>

#include "bind_envs.hpp"
#include "classic/models.hpp"

namespace {

using namespace xc;
using Numbers = std::unordered_map<std::string, double>;

std::unique_ptr<EnvEngine> make_engine(const std::string &task, Numbers values, const py::dict &config, const py::dict &arrays,
                                       std::shared_ptr<ThreadPool> pool) {
  auto dynamics = classic::with_model(task, {std::move(values)}, make_numpy(), [&](const auto &model) -> std::unique_ptr<envs::Dynamics> {
    using Model = std::decay_t<decltype(model)>;
    const auto n = config["num_envs"].cast<int64_t>();
    return std::make_unique<classic::Control<Model>>(model, column<double>(arrays, "states", n * Model::kState), n);
  });
  return std::make_unique<EnvEngine>(std::move(dynamics), config, arrays, std::move(pool), py::none());
}

}  // namespace

void bind_classic(py::module_ &m) {
  m.def("classic_engine", &make_engine, py::arg("task"), py::arg("values"), py::arg("config"), py::arg("arrays"), py::arg("pool"),
        "Makes an engine of classic control; see xcfast/envs/classic_tasks.py.");
}
