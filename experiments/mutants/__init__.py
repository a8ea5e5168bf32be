"""Mutation testing: does some test fail when the code is changed on purpose? See README.md."""
