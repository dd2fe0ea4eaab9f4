"""Decides which episode runs when, and hands groups to the trainer: requests, plans, scheduling, streams, progress.

State machines here are pure: no Ray, no clock of their own, no τ²-bench. The actors carry out what they decide.
"""
