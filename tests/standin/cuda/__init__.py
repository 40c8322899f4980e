"""A stand-in for cuda-python: the names of one real release, on host memory."""
