"""How well detectors do: metrics, tables, choices, the published benchmarks."""
