"""How many episodes may be in flight, so that the replicas' memory for keys and values holds what they have computed.

Pure decisions by what the replicas say of themselves. Which episode starts next, and where, is decided in `collecting`;
how many requests a user simulator's endpoint gets, in `pacing`. Nothing here knows Ray, an engine or a clock.
"""
