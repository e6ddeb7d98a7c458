"""Complete graphs, built from the steps of the package."""
