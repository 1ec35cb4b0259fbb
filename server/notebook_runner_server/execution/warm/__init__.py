"""Kernels that are started before a run asks for one."""
