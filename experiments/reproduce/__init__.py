"""Reproducing the paper's tables and figures: ``python -m experiments.reproduce table2``.

A table is data: ``experiments/<name>/manifest.yaml`` names methods, data sets and seeds on top of ``configs/``.

manifest.py  the file, typed (fields.py reads its keys)
regimes.py   settings of another regime, laid over a manifest's    weights.py  a local weights file in place of a tag
plan.py      its runs, as command lines of fedmoe.cli              pending.py  what fedmoe does not have yet
runner.py    the runs as processes                                 progress.py what is shown of them
results.py   their values over seeds, and the published ones       wording.py  these as lines of text
report.py    Markdown, CSV, LaTeX and the terminal's table         pictures.py PNG
cifar_files.py  small CIFAR files in the real format, for the preset tiny-cifar
"""
