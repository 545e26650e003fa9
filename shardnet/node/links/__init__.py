"""Connections to other members, and finding them.

Knows dialling, questions and answers, the DHT as a meeting place. Refuses to know what frames mean. Begin with `peer_links` and `coordinator_link`.
"""
