"""`shardnet doctor`: is this machine, and the swarm that it sees, as it should be, and what to do where it is not.

Knows what the other rooms say of themselves, and asks them: limits, whereabouts, certificates, the models cache, the coordinator's `/status`.
Each check is a pure function from plain facts to findings, beside the few lines that gather these facts. Refuses to mend anything, and to
write anywhere but into a temporary folder. Begin with `findings`, then `examination`, which runs all of them, each within its time.
"""
