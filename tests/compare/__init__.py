"""Independent runs side by side: grouping, paired statistics, tables and what they are written to."""
