"""How well drift is detected: delay, missed changes and false alarms on streams whose changes are
known."""
