"""Ray's job submission: send a command to a cluster, follow it, stop it, and fetch what it made.

Everything goes through the port of the cluster's dashboard.
"""
