// The arguments of functions that are called often. These are bound with CPython's fastcall protocol and read numpy's array
// header directly, because pybind11 needs more time for a dozen arrays than the kernel does.
//
// Convention: such a function takes plain arrays, that is exactly ndarray, C-contiguous, aligned, of native dtype and of
// matching shapes, and no output shares memory with another argument. For anything else it does nothing and returns False
// or None; the Python wrapper then converts the arguments or says what is wrong. Only a scalar of the wrong type raises here.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <initializer_list>

namespace xc {

namespace py = pybind11;

// From this many elements on (about 10 us of work), releasing the GIL is worth its cost.
constexpr int64_t kReleaseGilFrom = 1 << 15;

class MaybeReleaseGil {
 public:
  explicit MaybeReleaseGil(int64_t elements) : state_(elements >= kReleaseGilFrom ? PyEval_SaveThread() : nullptr) {}
  ~MaybeReleaseGil() {
    if (state_) PyEval_RestoreThread(state_);
  }
  MaybeReleaseGil(const MaybeReleaseGil &) = delete;
  MaybeReleaseGil &operator=(const MaybeReleaseGil &) = delete;

 private:
  PyThreadState *state_;
};

// numpy has one object for each native dtype, so comparing an array's descr pointer tells its type.
struct Dtypes {
  PyTypeObject *ndarray;
  PyObject *f32, *f64, *i64, *b1;
};

inline const Dtypes &dtypes() {
  static const Dtypes d = [] {
    auto keep = [](py::object o) { return o.release().ptr(); };
    py::object ndarray = py::module_::import("numpy").attr("ndarray");
    return Dtypes{reinterpret_cast<PyTypeObject *>(keep(ndarray)), keep(py::dtype::of<float>()), keep(py::dtype::of<double>()),
                  keep(py::dtype::of<int64_t>()), keep(py::dtype::of<bool>())};
  }();
  return d;
}

// Returns numpy's own object for this dtype, if there is one: equal dtypes may be different objects.
inline PyObject *canonical(PyObject *descr) {
  const Dtypes &d = dtypes();
  if (descr == d.f32 || descr == d.f64 || descr == d.b1 || descr == d.i64) return descr;
  const auto dtype = py::reinterpret_borrow<py::dtype>(descr);
  const char kind = dtype.kind(), order = dtype.byteorder();
  const auto size = dtype.itemsize();
  if (order != '=' && order != '|') return descr;
  if (kind == 'f' && size == 4) return d.f32;
  if (kind == 'f' && size == 8) return d.f64;
  if (kind == 'i' && size == 8) return d.i64;
  return kind == 'b' ? d.b1 : descr;
}

struct Array {
  char *data = nullptr;
  int nd = 0;
  const Py_ssize_t *shape = nullptr;
  PyObject *dtype = nullptr;
  bool writeable = false;

  template <class T>
  T *as() const {
    return reinterpret_cast<T *>(data);
  }
  int64_t size() const {
    int64_t product = 1;
    for (int i = 0; i < nd; ++i) product *= shape[i];
    return product;
  }
  int64_t itemsize() const {
    if (is_f64() || is_i64()) return 8;
    if (is_f32()) return 4;
    return is_bool() ? 1 : py::reinterpret_borrow<py::dtype>(dtype).itemsize();
  }
  int64_t bytes() const { return size() * itemsize(); }
  bool is_f32() const { return dtype == dtypes().f32; }
  bool is_f64() const { return dtype == dtypes().f64; }
  bool is_float() const { return is_f32() || is_f64(); }
  bool is_i64() const { return dtype == dtypes().i64; }
  bool is_bool() const { return dtype == dtypes().b1; }
  bool same_shape(const Array &other) const { return nd == other.nd && tail_matches(other, 0); }
  // Returns whether this shape without its first `skip` dimensions equals the shape of `other`.
  bool tail_matches(const Array &other, int skip) const {
    if (nd - skip != other.nd) return false;
    for (int i = skip; i < nd; ++i)
      if (shape[i] != other.shape[i - skip]) return false;
    return true;
  }
  bool is_vector(int64_t length) const { return nd == 1 && shape[0] == length; }
  // Returns whether the arrays share memory. An array without elements shares none.
  bool overlaps(const Array &other) const {
    // Most pairs are apart: compare the end of the one that begins first.
    if (!data || !other.data) return false;
    return data < other.data ? other.data < data + bytes() && other.size() > 0 : data < other.data + other.bytes() && size() > 0;
  }
  bool overlaps_any(std::initializer_list<const Array *> others) const {
    for (const Array *other : others)
      if (overlaps(*other)) return true;
    return false;
  }
};

inline bool plain(PyObject *object, Array &array) {
  if (Py_TYPE(object) != dtypes().ndarray) return false;
  const auto *proxy = py::detail::array_proxy(object);
  constexpr int wanted = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((proxy->flags & wanted) != wanted) return false;
  array = Array{proxy->data, proxy->nd, proxy->dimensions, canonical(proxy->descr),
                (proxy->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) != 0};
  return true;
}

inline bool plain_or_none(PyObject *object, Array &array) { return object == Py_None || plain(object, array); }

inline bool plain_output(PyObject *object, Array &array) { return plain(object, array) && array.writeable; }

inline bool count_is(const char *name, Py_ssize_t given, Py_ssize_t wanted) {
  if (given == wanted) return true;
  PyErr_Format(PyExc_TypeError, "%s takes %zd arguments; got %zd", name, wanted, given);
  return false;
}

inline bool to_double(PyObject *object, double &value) {
  value = PyFloat_AsDouble(object);
  return !(value == -1.0 && PyErr_Occurred());
}

inline bool to_bool(PyObject *object, bool &value) {
  const int truth = PyObject_IsTrue(object);
  value = truth == 1;
  return truth >= 0;
}

inline bool to_int(PyObject *object, int64_t &value) {
  value = PyLong_AsLongLong(object);
  return !(value == -1 && PyErr_Occurred());
}

// Seeds are taken modulo 2^64, so that negative ones are allowed.
inline bool to_seed(PyObject *object, uint64_t &value) {
  if (!PyLong_Check(object)) {
    PyErr_Format(PyExc_TypeError, "seed must be an int; got %R", object);
    return false;
  }
  value = PyLong_AsUnsignedLongLongMask(object);
  return !(value == uint64_t(-1) && PyErr_Occurred());
}

using FastFunction = PyObject *(*)(PyObject *, PyObject *const *, Py_ssize_t);

inline PyMethodDef fast_method(const char *name, FastFunction function, const char *doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, doc};
}

}  // namespace xc
