// The learner's memory: aligned, zeroed, allocated once, and on huge pages where the system provides them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace xc::nn {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t floats) {
    constexpr size_t kLine = 64, kHugePage = size_t(1) << 21;
    const size_t wanted = size_t(floats > 0 ? floats : 1) * sizeof(float);
    const size_t alignment = wanted >= kHugePage ? kHugePage : kLine;
    const size_t bytes = (wanted + alignment - 1) / alignment * alignment;
    data_ = static_cast<float *>(std::aligned_alloc(alignment, bytes));
    if (!data_) throw std::bad_alloc();
#if defined(__linux__)
    if (alignment == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    std::memset(data_, 0, bytes);
  }
  ~Buffer() { std::free(data_); }
  Buffer(Buffer &&other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Buffer &operator=(Buffer &&other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }

  float *data() const { return data_; }

 private:
  float *data_ = nullptr;
};

}  // namespace xc::nn
