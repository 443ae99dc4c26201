"""What the figures say, in words."""

__all__ = ["READING"]

READING = """## Which detector to use when

* **Classes whose labels come soon: `adwin` on `error`.** 49 of 54 abrupt changes 40 entries after them and 45 of 54
  gradual ones, and not one alarm in 75,600 entries of streams that never change. On `loss` it is quicker (24 entries),
  but missed all of SEA, where a tenth of the labels is noise. `page-hinkley` on `error` finds nearly as many, later.
* **Only a rise matters: `fhddm` or `hddm-a`.** They, `ddm`, `eddm` and `hddm-w` are made to see errors become more
  frequent: of the changes *back* to what the base was fitted on they found none but five of EDDM's, and should not.
* **Numbers: `page-hinkley` on `loss` or `hddm-w` on `error`**, 18 and 15 of 21, 7.6 and 4.0 false alarms per 10,000.
  `adwin` on `loss` found 10: a change that touches a small part of the inputs' space moves the mean too little.
* **Days and nights, and labels a day late: `residual`.** Where no link failed every other detector took the time of day
  for drift, 30 to 99 times per 10,000 entries; `adwin` on `residual` not once, and it found 25 of 42 failures (12.8 by
  chance). `page-hinkley` on `loss` told all 42 at the first entry, with 117 false alarms per 10,000: alarms for people
  are not to be made of that.
* **A change of the inputs alone** is `input`'s, without any label: `kswin` finds the most and is wrong the most.
  `confidence` and `embedding` saw the creeping drift at best; they are for when there is nothing else.
* **Not at river's defaults: `eddm` and `ddm`**, which on streams that never change fire 13.0 and 6.7 times per 10,000
  entries (EDDM is at or below chance on most tables), and **`kswin`**, 9 to 14 times and at 85 times the cost.
* **The glucose sensor: none.** The best row is 7 of 54 changes above what as many random alarms would have hit. About
  half of the changes are sure at all; the learners, which need no alarm, are what helps there (docs/results.md).
* **Take a cool-down as long as one change is worth an alarm**: repeats vanish. A detector that often fires falsely then
  loses true alarms to the quiet after false ones (`page-hinkley` on `loss`, abrupt: 51 to 38), one that does not loses
  none.
* **Channels**: dividing the level brings the false alarms of 100 independent channels at level .002 from 90 % of the
  runs back to 12.5 % (one channel: 2.2 %; each test is bounded, not a run). On autocorrelated channels the level means
  nothing, divided or not: one alone fired in 99 % of the runs. Watch `error` or `residual` there, or the mean.
* **The unit of `loss`**: in units of a running mean of itself (`loss/moving`), a base that stays wrong looks usual
  again, 1 change of 21 in place of 10 for `adwin`, 6 in place of 18 for Page-Hinkley. Where what is usual goes up and
  down by itself, as on the last three streams, that same forgetting saves false alarms.

An alarm is needed to tell people. What is served rarely needs one: docs/reactions.md.
"""  # noqa: E501
