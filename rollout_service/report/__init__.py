"""Reports of stored trajectories: what each one shows, the numbers of a run, runs compared, and how they are shown.

What plays episodes, or reads and writes their files, does not belong here.
"""
