"""Learners: the engines that turn a full rollout into new weights."""
