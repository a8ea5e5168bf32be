"""The benchmark of the field: every method of fedmoe in one protocol at one budget, and the leaderboard.

__main__.py     the command                     protocols.py    the protocols, and all methods as their rows
runs.py         the runs, in this process       scores.py       what a finished run scored
leaderboard.py  ranking, paired tests, CSV      picture.py      accuracy against bytes and seconds
page.py         Markdown, and published numbers rates.py        the one learning rate of all methods
"""
