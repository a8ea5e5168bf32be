"""One client of a run as a folder that needs neither the run nor this package's training code, and back.

``head`` is the reader that goes into the folder, ``write`` makes the folder, ``card`` its README.md, ``onnx`` the ONNX
file, ``into_run`` puts an exported client back into a run.
"""
