"""Decides which task comes next: uniform, by given weights, or by what was learned of each task's pass rate.

Samplers are pure: no Ray, no clock, no τ²-bench. What tasks there are is decided elsewhere, and so is when a task is
drawn and what becomes of its episodes.
"""
