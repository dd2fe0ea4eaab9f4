"""How many requests may be in flight towards an endpoint that others run, and who may send the next one.

An endpoint is an address with a model. The decisions are pure: clocks, threads and Ray are handed in. Nothing here
knows τ²-bench, and no policy call passes through here.
"""
