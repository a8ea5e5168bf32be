"""What the prompts of a federation reveal about its clients' data: attacks by named parties, on a fair game.

``game`` says who trains on what, ``transcript`` plays a federation and keeps what crossed the line, ``threats`` names
who sees which part of it, ``membership`` and ``properties`` are the attacks, ``epsilon`` turns guesses into a bound.
Importing this package imports no torch.
"""
