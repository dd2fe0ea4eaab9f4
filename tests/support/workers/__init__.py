"""Ray workers of the tests' clusters, as forks of a process that has imported what they need.

A worker of the service imports for one to four CPU seconds before it does anything, and the suite starts hundreds. Here
a `template` imports once, and each worker begins as its fork. All that follows is the ordinary worker's own code. A
replica that runs SGLang on the CPU begins so, too, and so does its scheduler, from a `spare`. Any other worker with
environment variables of its own starts in Ray's ordinary way, and so does every worker of the cluster that tests of
jobs start by Ray's own command.
"""
