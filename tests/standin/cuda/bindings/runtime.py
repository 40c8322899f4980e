"""Where one generation of cuda-python has CUDA's runtime."""

from standin_cudart import attribute

__getattr__ = attribute("cuda.bindings.runtime")
