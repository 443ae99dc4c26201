"""Plain items go through a pipeline in lots: base, learners, guard and statistics each take all
events of a lot in their order."""
