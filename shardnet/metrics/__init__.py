"""Figures for Prometheus: how a family of them is declared, and how all of a daemon's are worded and given out.

Knows the exposition format (by prometheus-client), buckets, and what every daemon tells of its own process. Refuses to know coordinators and
nodes: each of them reads its own state in a file of its own when it is asked. Begin reading at `family.py`, then `exposition.py`.
"""
