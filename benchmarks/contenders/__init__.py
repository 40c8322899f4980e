"""The engines that are compared: one module, one process each. See `benchmarks.workload`."""
