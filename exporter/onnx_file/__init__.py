"""An ONNX file that somebody else exported, as what variants are made from and compared with.

`folder` finds the file; `graph` reads it, refuses what cannot be used and writes it with our inputs and axes; `outputs`
says what its outputs are for a task; `head` appends pooling; `model` runs it as it was given; `reference` joins them.
"""
