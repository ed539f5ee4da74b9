"""What the library costs, side by side with what could be used instead: `python -m benchmarks`."""
