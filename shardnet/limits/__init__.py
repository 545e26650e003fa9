"""What this process may take of the machine: memory and processors within its control groups, resource limits and affinity.

Knows the kernel's files below `/proc` and the mounted control groups, versions 1 and 2; every function takes the folder that stands for `/`, so that
a described machine is read like a real one. Refuses to know models, devices and what anybody wants. Begin with `memory`, then `processors`; `cgroups`
finds the groups, `killing` tells that the kernel ended a process for want of memory. Where there is no such file, there is no such limit.
"""
