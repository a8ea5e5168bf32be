"""The benchmark of the field: every method of fedmoe in one protocol at one budget, and the leaderboard.

__main__.py     the command                     protocols.py    the protocols, and all methods as their rows
scores.py       what a finished run scored      leaderboard.py  ranking, paired tests, Markdown, CSV, picture
"""
