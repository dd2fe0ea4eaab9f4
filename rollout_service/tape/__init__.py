"""The tape: answers of the user simulator's and the judge's model, recorded in files and replayed from them.

What belongs here: the files' format, who may write them, and which recorded answer belongs to a request. What does not:
asking a model, which `rollout_service.tau2.model_calls` does.
"""
