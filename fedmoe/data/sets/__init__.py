"""Data sets, one file each, and the readers of the layouts they share."""
