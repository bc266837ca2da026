"""Score tables -> metrics, intervals, paired tests. No torch."""
