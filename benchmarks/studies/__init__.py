"""Studies: each folder is one command, such as `python -m benchmarks.studies.fusion`.

`__main__.py` of a study holds its flags and imports no more than the runtime needs, so `--help`
works without torch. The work is in the modules next to it.
"""
