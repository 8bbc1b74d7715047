// Plays the same number of episodes in every env, with the policy's most likely actions and frozen statistics.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "collect/actor.hpp"
#include "collect/schedule.hpp"
#include "envs/engine.hpp"

namespace xc::collect {

class Evaluation {
 public:
  // quota: the number of episodes in each env.
  Evaluation(envs::Engine &engine, const Policy &policy, const Normalizer &normalizer, int64_t quota, int num_threads)
      : engine_(engine),
        policy_(policy),
        normalizer_(normalizer),
        quota_(quota),
        schedule_(engine.num_envs(), Schedule::envs_per_block(engine.num_envs(), num_threads)),
        scores_(size_t(engine.num_envs() * quota)),
        finished_(size_t(engine.num_envs())),
        waiting_(size_t(engine.num_envs())) {
    const int64_t most = schedule_.size() ? schedule_[0].end - schedule_[0].begin : 1;
    for (int64_t t = 0; t < std::min<int64_t>(num_threads, schedule_.size()); ++t) actors_.emplace_back(policy, most);
  }

  // See Collection::run.
  bool run(ThreadPool &pool, Schedule::Clock::duration limit) {
    return schedule_.run(pool, limit, [this](int64_t block, int64_t worker) { return advance(schedule_[block], actors_[size_t(worker)]); });
  }
  bool failed() const { return schedule_.failed(); }

  // The number of episodes that have ended. Not while run() works.
  int64_t ended() const { return std::accumulate(finished_.begin(), finished_.end(), int64_t(0)); }

  // The returns of the episodes, [N, quota].
  const std::vector<double> &scores() const { return scores_; }

 private:
  static constexpr int64_t kTurn = 16;  // steps of a block between two visits to the schedule

  Progress advance(const Schedule::Block &block, Actor &actor) {
    const envs::Engine::Guard guard(engine_);
    for (int64_t turn = 0; turn < kTurn && (turn == 0 || !schedule_.late()); ++turn) {
      for (int64_t env = block.begin; env < block.end; ++env) {
        if (!waiting_[size_t(env)] || done(env)) continue;
        const envs::Status status = engine_.reset_one(env);
        if (status == envs::Status::kNeedsReset) return Progress::kWaits;
        if (status == envs::Status::kFailed) return Progress::kFailed;
        waiting_[size_t(env)] = false;
      }
      const Progress progress = step(block, actor);
      if (progress != Progress::kGoesOn) return progress;
    }
    return Progress::kGoesOn;
  }

  // Steps once the envs of a block that are not done.
  Progress step(const Schedule::Block &block, Actor &actor) {
    const int64_t dim = engine_.obs_size(), width = policy_.network.action_size();
    int64_t rows = 0;
    for (int64_t env = block.begin; env < block.end; ++env)
      if (!done(env)) normalizer_.apply(engine_.obs(env), 1, dim, actor.obs.data() + rows++ * dim);
    if (rows == 0) return Progress::kDone;
    actor.forward(policy_.weights, actor.obs.data(), rows, actor.outputs.data());
    const float *output = actor.outputs.data();
    for (int64_t env = block.begin; env < block.end; ++env) {
      if (done(env)) continue;
      policy_.mode(output, actor.action.data());
      output += width;
      const envs::Step step = engine_.step_one(env, actor.action.data());
      if (step.status == envs::Status::kFailed) return Progress::kFailed;
      if (step.status == envs::Status::kRunning) continue;
      waiting_[size_t(env)] = step.status == envs::Status::kNeedsReset;
      scores_[size_t(env * quota_ + finished_[size_t(env)]++)] = engine_.rows().finished_returns[env];
    }
    return Progress::kGoesOn;
  }

  bool done(int64_t env) const { return finished_[size_t(env)] == quota_; }

  envs::Engine &engine_;
  const Policy &policy_;
  const Normalizer normalizer_;
  const int64_t quota_;
  Schedule schedule_;
  std::vector<double> scores_;
  std::vector<int64_t> finished_;  // [N]
  std::vector<char> waiting_;      // [N], whether the env waits for an initial state
  std::vector<Actor> actors_;
};

}  // namespace xc::collect
