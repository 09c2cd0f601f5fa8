"""Evaluation and calibration data in the forms that people have: files, folders of texts, datasets on disk.

Everything is read as a stream, so that a file may be larger than memory. What the rows mean is not known here: that is
in runtime/evaluation/ and exporter/calibration.py.
"""
