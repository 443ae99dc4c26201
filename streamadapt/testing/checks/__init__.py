"""Shared check suites for every source, sink, learner and detector, built in or third party."""
