"""Shared check suites: what every source, sink, learner and detector must pass, built in or third
party."""
