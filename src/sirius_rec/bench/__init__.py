"""`sirius bench`: the performance figures, measured beside what people use today, on the same batch."""
