"""What server and client agree on. Start reading here.

``parameters``: what a method learns, each part with its scope. ``records``: everything that crosses the line between
server and client, and what each side keeps. ``wire``: these records as bytes. ``method``: the base class of methods.
``client``: what a method sees of the client it runs on. Importing this needs no torch, so that ``--help`` and error
messages are fast.
"""
