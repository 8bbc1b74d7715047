// Reports how the extension was built and which variant of the kernels runs, and registers the kernels of the other
// bind_*.cpp files.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/simd.hpp"

namespace py = pybind11;

void bind_gae(py::module_ &m);
void bind_moments(py::module_ &m);
void bind_rollout(py::module_ &m);

namespace {

std::vector<std::string> variants() {
  std::vector<std::string> names{"baseline"};
  if (xc::has_avx2()) names.push_back("avx2");
  return names;
}

void use_variant(const std::string &name) {
  if (name == "baseline")
    xc::chosen_variant() = xc::Variant::baseline;
  else if (name == "avx2" && xc::has_avx2())
    xc::chosen_variant() = xc::Variant::avx2;
  else
    throw std::invalid_argument("variant must be one that build_info() lists; got '" + name + "'");
}

py::dict build_info() {
  py::list flags;
#ifdef XCFAST_BUILD_FLAGS
  flags.append(XCFAST_BUILD_FLAGS);
#endif
#ifdef __OPTIMIZE__
  flags.append("optimized");
#endif
#ifdef __AVX2__
  flags.append("avx2 in all code");
#endif
#ifdef __FMA__
  flags.append("fma available");
#endif
#ifdef __SANITIZE_ADDRESS__
  flags.append("address sanitizer");
#endif
#ifdef __SANITIZE_THREAD__
  flags.append("thread sanitizer");
#endif
#ifdef __FAST_MATH__
  flags.append("fast math");
#endif
  py::dict info;
#ifdef __clang__
  info["compiler"] = std::string("clang ") + __clang_version__;
#else
  info["compiler"] = std::string("gcc ") + __VERSION__;
#endif
  info["cxx"] = static_cast<long>(__cplusplus);
  info["flags"] = flags;
  info["variants"] = variants();
  info["variant"] = xc::chosen_variant() == xc::Variant::avx2 ? "avx2" : "baseline";
  return info;
}

}  // namespace

void bind_kernels(py::module_ &m) {
  bind_gae(m);
  bind_moments(m);
  bind_rollout(m);
  m.def("build_info", &build_info, "Returns the compiler, its flags, and the instruction-set variants: those available "
                                   "and the chosen one.");
  m.def("use_variant", &use_variant, "Chooses an instruction-set variant, for tests. No kernel may be running.", py::arg("name"));
}
