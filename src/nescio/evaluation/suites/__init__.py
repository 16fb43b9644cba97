"""The published benchmarks: their data sets, networks and numbers."""
