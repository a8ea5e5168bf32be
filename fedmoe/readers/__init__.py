"""Readers of files from outside: nothing that they hold is ever executed."""
