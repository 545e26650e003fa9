"""The coordinator's figures for Prometheus.

Knows which figures there are, and reads them where they are kept when somebody asks. Refuses to know how they are worded (`shardnet.metrics`), and to
count anything itself. Begin reading at `families.py`, the list, then `reading.py`.
"""
