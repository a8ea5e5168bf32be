"""The server: cohort sampling, the prompt pool, the weighted mean, and the assignment of experts."""
