// The extension module. Each bind_*.cpp checks arguments, releases the GIL, and calls code that knows no Python.
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_classic(py::module_ &m);    // bind_classic.cpp
void bind_collector(py::module_ &m);  // bind_collector.cpp
void bind_envs(py::module_ &m);       // bind_envs.cpp
void bind_kernels(py::module_ &m);    // bind_kernels.cpp
void bind_mujoco(py::module_ &m);     // bind_mujoco.cpp
void bind_nn(py::module_ &m);         // bind_nn.cpp
void bind_sync(py::module_ &m);       // bind_sync.cpp

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled core of xcfast";
  bind_kernels(m);
  bind_envs(m);
  bind_classic(m);
  bind_mujoco(m);
  bind_nn(m);
  bind_collector(m);
  bind_sync(m);
}
