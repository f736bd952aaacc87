"""Run the reward service: the world model on Ray Serve, which answers how unsure it is."""
