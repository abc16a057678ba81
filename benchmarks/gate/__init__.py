"""One command for a machine with a GPU: `python -m benchmarks.gate --json FILE`, under nine minutes from cold.

It checks what tests cannot check without a GPU: whether the kernels are right there, in every precision, whether they
can be captured and compiled, and how fast they are. Sections run in processes of their own, so that one that fails or
hangs is a red line and the others go on. It needs torch, triton, numpy, scipy and pytest alone, and no C++ extension.
"""
