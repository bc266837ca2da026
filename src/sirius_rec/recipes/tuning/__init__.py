"""Equal tuning: every arm and method gets the same number of trials on validation, then fresh seeds and one test."""
