"""Quality of drift detection: delay, missed changes and false alarms on streams with known
changes."""
