"""The agent: network, loss, learner, replay buffer and checkpoints."""
