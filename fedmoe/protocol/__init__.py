"""What server and client agree on. Read this room first.

``parameters``: what a method learns, each part with its scope. ``records``: all that crosses the line between server
and client, and what each side keeps. ``method``: the base of every method. ``client``: what a method sees of the client
it runs on. Nothing here imports torch, so that ``--help`` and mistakes are answered at once.
"""
