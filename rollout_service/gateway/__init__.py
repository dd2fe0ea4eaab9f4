"""The service over HTTP, for trainers outside the cluster: tokens, limits, the form of groups on the wire, and the
client's side. The server is `deploy.gateway`.

Nothing here knows Ray or starts a server.
"""
