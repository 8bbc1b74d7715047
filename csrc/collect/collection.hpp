// Collects steps [begin, end) of a rollout. A thread takes each env through all of them without waiting for the others.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "collect/actor.hpp"
#include "collect/schedule.hpp"
#include "envs/engine.hpp"
#include "envs/numerics.hpp"
#include "kernels/rollout.hpp"

namespace xc::collect {

// The arrays of xcfast.Rollout.
struct RolloutRows {
  float *obs, *rewards;                 // [T, N, D], [T, N]
  float *actions;                       // [T, N, A], the samples of a Gaussian policy
  int64_t *choices;                     // [T, N], the samples of a Categorical policy
  uint8_t *terminated, *truncated;      // [T, N]
  double *episode_returns;              // [N], of the running episodes
  int64_t *episode_lengths;
};

class Collection {
 public:
  Collection(envs::Engine &engine, const Policy &policy, const Normalizer &normalizer, const RolloutRows &rollout, const Noise &noise,
             int64_t begin, int64_t end, int num_threads)
      : engine_(engine),
        policy_(policy),
        normalizer_(normalizer),
        rollout_(rollout),
        noise_(noise),
        begin_(begin),
        end_(end),
        schedule_(engine.num_envs(), Schedule::envs_per_block(engine.num_envs(), num_threads)),
        blocks_(size_t(schedule_.size()), Block{begin, {}, {}, {}}),
        waiting_(size_t(engine.num_envs())) {
    const int64_t most = schedule_.size() ? schedule_[0].end - schedule_[0].begin : 1;
    for (int64_t t = 0; t < std::min<int64_t>(num_threads, schedule_.size()); ++t) actors_.emplace_back(policy, most);
  }

  // Advances the envs for about `limit`. Returns whether all are done. If not, and if no env failed, the caller draws
  // initial states for the envs that have none left, and calls it again.
  bool run(ThreadPool &pool, Schedule::Clock::duration limit) {
    return schedule_.run(pool, limit, [this](int64_t block, int64_t worker) { return advance(block, actors_[size_t(worker)]); });
  }
  bool failed() const { return schedule_.failed(); }

  // The episodes that ended, ordered by time, then by env.
  struct Ended {
    std::vector<Episode> episodes;
    std::vector<int64_t> final_index;  // [K], flat indices t * N + env of the steps that were truncated, not terminated
    std::vector<float> final_obs;      // [K, D], their final observations, normalized
    int64_t not_finite = -1;           // the first of final_index whose observation is not finite; -1 if all are finite
  };
  Ended ended() const {
    Ended all;
    struct Final {
      int64_t index;
      const float *obs;
    };
    std::vector<Final> finals;
    const size_t dim = size_t(engine_.obs_size());
    for (const Block &block : blocks_) {
      all.episodes.insert(all.episodes.end(), block.episodes.begin(), block.episodes.end());
      if (block.not_finite >= 0 && (all.not_finite < 0 || block.not_finite < all.not_finite)) all.not_finite = block.not_finite;
      for (size_t k = 0; k < block.final_index.size(); ++k) finals.push_back({block.final_index[k], block.final_obs.data() + k * dim});
    }
    const auto earlier = [](const Episode &a, const Episode &b) { return a.step != b.step ? a.step < b.step : a.env < b.env; };
    std::sort(all.episodes.begin(), all.episodes.end(), earlier);
    std::sort(finals.begin(), finals.end(), [](const Final &a, const Final &b) { return a.index < b.index; });
    for (const Final &final : finals) {
      all.final_index.push_back(final.index);
      all.final_obs.insert(all.final_obs.end(), final.obs, final.obs + dim);
    }
    return all;
  }

 private:
  static constexpr int64_t kTurn = 16;  // steps of a block between two visits to the schedule

  struct Block {
    int64_t step;
    std::vector<Episode> episodes;
    std::vector<int64_t> final_index;
    std::vector<float> final_obs;
    int64_t not_finite = -1;  // see Ended
  };

  Progress advance(int64_t index, Actor &actor) {
    const auto [begin, end] = schedule_[index];
    Block &block = blocks_[size_t(index)];
    const envs::Engine::Guard guard(engine_);
    for (int64_t turn = 0; turn <= kTurn; ++turn) {
      for (int64_t env = begin; env < end; ++env) {
        if (!waiting_[size_t(env)]) continue;
        const envs::Status status = engine_.reset_one(env);
        if (status == envs::Status::kNeedsReset) return Progress::kWaits;
        if (status == envs::Status::kFailed) return Progress::kFailed;
        waiting_[size_t(env)] = false;
      }
      if (block.step == end_) return Progress::kDone;
      if (turn == kTurn || (turn > 0 && schedule_.late())) break;
      if (!step(block, begin, end, actor)) return Progress::kFailed;
      ++block.step;
    }
    return Progress::kGoesOn;
  }

  // Steps envs [begin, end) once. Returns false if one failed.
  bool step(Block &block, int64_t begin, int64_t end, Actor &actor) {
    const int64_t num_envs = engine_.num_envs(), dim = engine_.obs_size(), width = engine_.action_size();
    const int64_t first = block.step * num_envs + begin, rows = end - begin;
    float *obs = rollout_.obs + first * dim;
    normalizer_.track(engine_.obs(begin), begin, rows, dim, obs);
    actor.forward(policy_.weights, obs, rows, actor.outputs.data());
    actor.draw(noise_, first - begin_ * num_envs, begin, rows);
    for (int64_t row = 0; row < rows; ++row) {
      if (policy_.categorical())
        actor.sample(policy_, row, rollout_.choices + first + row);
      else
        actor.sample(policy_, row, rollout_.actions + (first + row) * width);
      const envs::Step step = engine_.step_one(begin + row, actor.action.data());
      if (step.status == envs::Status::kFailed) return false;
      store(block, begin + row, step);
    }
    return true;
  }

  void store(Block &block, int64_t env, const envs::Step &step) {
    const int64_t place = block.step * engine_.num_envs() + env, dim = engine_.obs_size();
    rollout_.rewards[place] = float(step.reward);
    rollout_.terminated[place] = step.terminated;
    rollout_.truncated[place] = step.truncated;
    rollout_.episode_returns[env] += step.reward;
    ++rollout_.episode_lengths[env];
    if (step.status == envs::Status::kRunning) return;
    waiting_[size_t(env)] = step.status == envs::Status::kNeedsReset;
    block.episodes.push_back({block.step, env, rollout_.episode_returns[env], rollout_.episode_lengths[env]});
    rollout_.episode_returns[env] = 0;
    rollout_.episode_lengths[env] = 0;
    if (step.terminated) return;
    block.final_index.push_back(place);
    // Checked before normalization, which would clip infinity to an ordinary number.
    const double *final_obs = engine_.final_obs(env);
    if (block.not_finite < 0 && !envs::all_finite(final_obs, dim)) block.not_finite = place;
    block.final_obs.resize(block.final_obs.size() + size_t(dim));
    normalizer_.apply(final_obs, 1, dim, block.final_obs.data() + block.final_obs.size() - size_t(dim));
  }

  envs::Engine &engine_;
  const Policy &policy_;
  const Normalizer normalizer_;
  const RolloutRows rollout_;
  const Noise noise_;
  const int64_t begin_, end_;
  Schedule schedule_;
  std::vector<Block> blocks_;
  std::vector<char> waiting_;  // [N], whether the env waits for an initial state
  std::vector<Actor> actors_;
};

}  // namespace xc::collect
