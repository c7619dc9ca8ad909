"""Estimates the device memory a run needs by tracing its steps with fake tensors, which allocate nothing."""
