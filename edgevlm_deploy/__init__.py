"""edgevlm: compile vision-language models for edge devices, and refuse to ship one that broke on the way."""

__version__ = "0.1.0"
