"""Branch and bound on reduced problems; knows no graph and no op."""
