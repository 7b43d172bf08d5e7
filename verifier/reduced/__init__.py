"""The reduced problem: the unstable core of a network over a box."""
