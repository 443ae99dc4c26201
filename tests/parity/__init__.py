"""Golden files: states and predictions of today's code, with which other code is compared.

``PYTHONPATH=tests python -m parity.make`` writes the files, and `tests/test_parity.py` compares.

=================  ================================================================================
`streams`          seeded streams that are the same to the bit on every machine
`models`           the frozen models
`cases`            the list of cases: a pipeline and a stream each
`recording`        what is kept of a run's predictions
`files`            one zip archive for each case: a checkpoint of format 3 and the record
`tolerances`       how far a number may be from the recorded one, by its kind
`comparing`        the differences between two records
`scenarios`        the same for the scenarios of `benchmarks.quality`, without checkpoints
=================  ================================================================================
"""
