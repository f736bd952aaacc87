"""Checks of what a run needs: the machine, the machines of a cluster, and an account on AWS."""
