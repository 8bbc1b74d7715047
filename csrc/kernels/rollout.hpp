// The storage of rollouts. xcfast/rollout.py documents the rules.
#pragma once

#include <cstdint>
#include <cstring>

namespace xc {

// One finished episode, in the layout of Rollout.episodes.
struct Episode {
  int64_t step, env;
  double ret;
  int64_t length;
};

// The rows of one vector step, and where to copy them. Nothing is copied if both are the same memory.
struct RowCopy {
  const char *from;
  char *to;
  int64_t bytes;
};

// Returns the number of envs whose episode only a time limit ended, and which therefore need a final observation.
inline int64_t count_cut_unchecked(const uint8_t *terminated, const uint8_t *truncated, int64_t num_envs) {
  int64_t count = 0;
  for (int64_t n = 0; n < num_envs; ++n) count += truncated[n] & (terminated[n] ^ 1);
  return count;
}

// Stores one vector step: rewards as float32, flags, and the running returns (sums in float64) and lengths. Appends the
// episodes that ended to `episodes`, and the flat indices of those that only a time limit ended to `cuts`. Both must have
// room for num_envs more. Returns the number of episodes that ended.
template <class T>
int64_t store_step_unchecked(int64_t step, int64_t num_envs, const T *rewards, const uint8_t *terminated, const uint8_t *truncated,
                             float *rewards_row, uint8_t *terminated_row, uint8_t *truncated_row, double *episode_returns,
                             int64_t *episode_lengths, Episode *episodes, int64_t *cuts) {
  Episode *next = episodes;
  for (int64_t n = 0; n < num_envs; ++n) {
    rewards_row[n] = float(rewards[n]);
    episode_returns[n] += double(rewards[n]);
    ++episode_lengths[n];
    if (terminated[n] | truncated[n]) {
      *next++ = Episode{step, n, episode_returns[n], episode_lengths[n]};
      episode_returns[n] = 0;
      episode_lengths[n] = 0;
      if (!terminated[n]) *cuts++ = step * num_envs + n;
    }
  }
  std::memmove(terminated_row, terminated, size_t(num_envs));
  std::memmove(truncated_row, truncated, size_t(num_envs));
  return next - episodes;
}

inline void copy_row_unchecked(const RowCopy &row) {
  if (row.from != row.to) std::memmove(row.to, row.from, size_t(row.bytes));
}

inline bool indices_within(const int64_t *indices, int64_t count, int64_t rows) {
  bool ok = true;
  for (int64_t i = 0; i < count; ++i) ok &= uint64_t(indices[i]) < uint64_t(rows);
  return ok;
}

// Copies to[i] = from[indices[i]] for rows of `bytes` bytes.
inline void gather_rows_unchecked(const char *from, char *to, const int64_t *indices, int64_t count, int64_t bytes) {
  constexpr int64_t kAhead = 16;  // prefetched rows: they are scattered over more memory than fits into L2
  if (bytes == 4) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * 4, from + indices[i] * 4, 4);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const char *ahead = from + indices[i + kAhead] * bytes;
      __builtin_prefetch(ahead);
      if (bytes > 64) __builtin_prefetch(ahead + 64);
    }
    std::memcpy(to + i * bytes, from + indices[i] * bytes, size_t(bytes));
  }
}

}  // namespace xc
