"""Measuring a swarm beside plain llama.cpp in the same run. Method and rules: docs/benchmarks.md."""
