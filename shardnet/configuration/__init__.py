"""What the settings of a daemon come to on this machine: for the daemons' start, and for people who ask.

Knows which daemons there are and the flags' keys; what "auto" and 0 come to; what is legal and cannot work here. Refuses to open ports or to change
anything. Begin with `daemons.py`.
"""
