"""The figures in words."""

__all__ = ["READING"]

READING = """## Which detector to use when

* **Classes with labels that arrive soon: `adwin` on `error`.** It found 49 of 54 abrupt changes, 40 entries after them, and
  45 of 54 gradual ones, with no alarm in 75,600 entries of streams that never change. On `loss` it is quicker (24
  entries), but missed all changes of SEA, where a tenth of the labels is noise. `page-hinkley` on `error` finds nearly as
  many changes, later.
* **Only an increase of errors matters: `fhddm` or `hddm-a`.** These and `ddm`, `eddm` and `hddm-w` are designed to detect
  that errors become more frequent. Of the changes *back* to the concept that the base was fitted on, EDDM found five and
  the others none, as intended.
* **Regression: `page-hinkley` on `loss` or `hddm-w` on `error`**: 18 and 15 of 21 changes, with 7.6 and 4.0 false alarms
  per 10,000 entries. `adwin` on `loss` found 10: a change in a small part of the input space moves the mean too little.
* **Daily cycles, and labels a day late: `residual`.** Where no link failed, every other detector reported the time of day
  as drift, 30 to 99 times per 10,000 entries. `adwin` on `residual` had no false alarm, and found 25 of 42 failures (12.8
  by chance). `page-hinkley` on `loss` found all 42 at the first entry, with 117 false alarms per 10,000 entries: too many
  to alert people.
* **Changes of the inputs alone: `input`**, which needs no labels. `kswin` finds the most changes and has the most false
  alarms. `confidence` and `embedding` detected at best the creeping drift; use them only when there is no other signal.
* **Do not use at river's defaults: `eddm` and `ddm`**, which fire 13.0 and 6.7 times per 10,000 entries on streams that
  never change (EDDM is at or below chance in most tables), and **`kswin`**, which fires 9 to 14 times and costs 85 times as
  much.
* **The glucose sensor: none.** The best row found 7 of 54 changes more than the same number of random alarms would have
  found. Only about half of the changes are certain. The learners, which need no alarm, help there (docs/results.md).
* **Use a cool-down as long as you want only one alarm for a change**: repeats then disappear. A detector with many false
  alarms misses true changes during the cool-down after a false one (`page-hinkley` on `loss`, abrupt: from 51 to 38); a
  detector with few false alarms misses none.
* **Channels**: for 100 independent channels at level 0.002, dividing the level reduces the runs with a false alarm from 90 %
  to 12.5 % (one channel: 2.2 %; the level bounds each test, not a run). On autocorrelated channels the level has no meaning,
  divided or not: a single channel fired in 99 % of the runs. Watch `error` or `residual` there, or the mean.
* **The unit of `loss`**: in units of a running mean of itself (`loss/moving`), a base that stays wrong soon looks
  normal: `adwin` found 1 change of 21 instead of 10, Page-Hinkley 6 instead of 18. Where the normal level itself goes up and
  down, as on the last three streams, the same forgetting prevents false alarms.

Alarms are needed to inform people. The served prediction rarely needs one: docs/reactions.md.
"""  # noqa: E501
